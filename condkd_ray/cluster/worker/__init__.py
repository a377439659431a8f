"""One trial on a worker: the trainable, its producers, its files and retries."""
