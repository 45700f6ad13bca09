"""A decoder of nobody's: fused queries, keys and values group by group, a factor on what is written, no rotation."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class MineConfig(PretrainedConfig):
    model_type = "mine"

    def __init__(self, vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, gate=False, **more):
        self.vocab_size, self.hidden_size, self.gate = vocab_size, hidden_size, gate
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        super().__init__(**more)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate = nn.Linear(width, width) if config.gate else None

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2).unbind(3)
        slopes = torch.arange(1, self.heads + 1, device=x.device).view(-1, 1, 1)
        places = torch.arange(x.shape[1], device=x.device)
        scores = q @ k.transpose(2, 3) / 3 - 0.1 * slopes * (places[:, None] - places).abs()
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        made = (scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.proj(made if self.gate is None else made * self.gate(x).sigmoid())


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.ln1, self.ln2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), Attention(config)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + 0.22 * self.attn(self.ln1(x))
        return x + 0.22 * self.ffn(self.ln2(x))


class MineModel(PreTrainedModel):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def forward(self, input_ids=None, **more):
        x = self.wte(input_ids)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x))


class MineForCausalLM(PreTrainedModel):
    config_class, base_model_prefix = MineConfig, "body"

    def __init__(self, config):
        super().__init__(config)
        self.body = MineModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.body.wte

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids=None, **more):
        return CausalLMOutputWithPast(logits=self.head(self.body(input_ids, **more).last_hidden_state))
