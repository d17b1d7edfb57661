"""Fine-tune large pre-trained vision backbones in very little memory."""
