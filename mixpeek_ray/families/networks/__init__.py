"""Forward passes: batches of tokens to vectors, by the platform's own BERT or by transformers."""
