"""Image tokenizers whose networks are diffusers' autoencoders.

kl_tokenizer          continuous: latent diffusion's
vqgan_tokenizer       discrete: VQModel, and how to read one that diffusers saved
"""
