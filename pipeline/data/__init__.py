"""Images in: `open` opens a source, `sampling` draws from one, `augment` varies images."""
