"""Attention, blocks, transformer (and mar), diffusion_head, random_order_model; then tokenizer, text_encoder."""
