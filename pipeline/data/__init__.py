"""Images in: `sources` opens them, `draws` samples them, `augment` varies them."""
