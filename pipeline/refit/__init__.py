"""The model a person wants: the recommended recipe once more, on all images but the test split."""
