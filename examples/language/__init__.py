"""What the example of language models is made of beside the models: text, baselines, pictures, a meter of memory."""
