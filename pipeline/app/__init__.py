"""The page on which a person tries a model on a picture of their own."""
