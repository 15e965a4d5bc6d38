"""The Ray Data pipeline: collections of media in, partitioned Parquet of embeddings out."""
