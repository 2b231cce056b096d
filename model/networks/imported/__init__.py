"""Backbones of imported families of discrete tokens; the modules of diffusers where it has them.

encoded_text      the condition of aMUSEd and Meissonic, and CLIP's text half that computes it
amused            UVit2DModel of diffusers
meissonic         Flux blocks of diffusers in a masked image model
prefix_causal     a Llama that begins with the prompt: Janus and LlamaGen
"""
