"""What models are trained on: a task, the built-in ones, and where the own ones come from."""
