"""Parts of train_tokenizer.

loss         of reconstructed images, from latents with noise or from codes
start        from PCA, and for a codebook from clusters
report       PSNR, seams, use of the codebook, sheet
"""
