"""Read layers/, transformer, causal or mar, diffusion_head, autoregressive_model; then tokenizer and text_encoder."""
