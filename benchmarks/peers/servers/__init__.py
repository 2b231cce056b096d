"""The peers' services. Each is a program that generates images with `work` behind POST /v1/images/generations.

body           the request body that FastAPI and LitServe validate
work           one batch of whole images, from request bodies to PNG files
batcher        a hand-written collector of batches, for arq, whose documentation has none
by_hand        FastAPI, a thread pool and a lock: one image at a time
litserve_app   LitServe with max_batch_size
ray_app        Ray Serve with @serve.batch
bento_app      BentoML with a batchable API and its wrapper service
arq_gateway    FastAPI that enqueues jobs with arq and waits for their results
arq_worker     the worker of arq
"""
