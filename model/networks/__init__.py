"""Read attention, blocks, transformer or mar, diffusion_head, random_order_model; then tokenizer and text_encoder."""
