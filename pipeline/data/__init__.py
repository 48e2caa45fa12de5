"""Images in: `open` opens a source, `draws` samples one, `augment` varies images."""
