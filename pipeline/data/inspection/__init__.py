"""What is told of images: whether they can be read, what they are, which are nearly the same."""
