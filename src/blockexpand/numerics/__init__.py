"""The arithmetic that training and measuring share: batches, forward passes, the memory-lean loss."""
