"""What a run tells: history.jsonl (the truth), the log line, plots and wandb (views of it). Imports nothing heavy."""
