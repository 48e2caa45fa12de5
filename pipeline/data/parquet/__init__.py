"""Images in Parquet files as Hugging Face lays them out."""
