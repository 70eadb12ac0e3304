"""What training tests share."""

from training_ground import ground as ground
