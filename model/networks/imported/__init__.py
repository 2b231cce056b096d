"""Families whose weights are imported, not trained here; the modules of diffusers where it has them.

nova              text to image, random order over continuous tokens (BAAI)
encoded_text      the condition of aMUSEd and Meissonic, and CLIP's text half that computes it
amused            UVit2DModel of diffusers
meissonic         Flux blocks of diffusers in a masked image model
prefix_causal     a Llama that begins with the prompt: Janus and LlamaGen
"""
