"""Many requests through one model: fair batches, bounded queues, results in order."""
