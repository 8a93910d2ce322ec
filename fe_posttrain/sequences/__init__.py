"""Completions of a causal language model: drawn with their log-probs, or scored. The one place that does either.

A prompt that stands in consecutive rows (a group) is forwarded once, whatever is done with its rows.

    decoding   the declared decoding
    models     what this room needs of a model
    sampling   draw completions, with the log-prob of every token under the law it was drawn from
    growing    decode over a cache that grows; any device
    static     decode over a cache of fixed size by a compiled forward, on a GPU
    packed     the attention of one token that static decodes with
    prompts    prompts forwarded once, with or without gradient, and completions forwarded against what that left
    scoring    log-probs of given completions

Shapes: N rows, n different prompts, P the longest prompt, T the longest completion, V the vocabulary. Prompts are
padded on the left, completions on the right. Log-probs are natural logarithms in float32.
"""
