"""What runs tell of single images: predictions, mistakes, near duplicates."""
