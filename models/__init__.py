"""What a model is: its configuration, checkpoint, tokenizer, chat format, attention and norms. No Ray, no gRPC."""
