"""SigLIP in the form of `transformers`, and the order in which SmolVLM2 joins patches."""

import torch

from vla_policy_node.nn import vision
from vla_policy_node.nn.siglip import Siglip, file_name, shuffle_pixels, siglip_config

SIZES = siglip_config(width=16, blocks=2, heads=2, mlp_width=24, patch_px=4, image_px=16)


def test_it_is_the_encoder_of_timm_with_a_norm_and_another_gelu():
    """Up to how query, key and value lie in the files."""
    torch.manual_seed(0)
    siglip, timm = Siglip(SIZES), vision.VisionEncoder(SIZES)
    for parameter in siglip.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {
        'patch_embed.proj.weight': siglip.patch_embedding.weight,
        'patch_embed.proj.bias': siglip.patch_embedding.bias,
        'pos_embed': siglip.position_embedding.weight[None]}
    for index, layer in enumerate(siglip.layers):
        own = dict(layer.named_parameters())
        for kind in ('weight', 'bias'):
            state |= {
                f'blocks.{index}.norm1.{kind}': own[f'layer_norm1.{kind}'],
                f'blocks.{index}.norm2.{kind}': own[f'layer_norm2.{kind}'],
                f'blocks.{index}.attn.qkv.{kind}': torch.cat(
                    [own[f'self_attn.{part}_proj.{kind}'] for part in 'qkv']),
                f'blocks.{index}.attn.proj.{kind}': own[f'self_attn.out_proj.{kind}'],
                f'blocks.{index}.mlp.fc1.{kind}': own[f'mlp.fc1.{kind}'],
                f'blocks.{index}.mlp.fc2.{kind}': own[f'mlp.fc2.{kind}']}
        timm.blocks[index].mlp.approximate = 'tanh'
    timm.load_state_dict(state)
    pictures = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(siglip(pictures), siglip.post_layernorm(timm(pictures)))


def test_names_are_those_of_transformers():
    names = [file_name(name) for name in Siglip(SIZES).state_dict()]
    assert names[:3] == [
        'embeddings.patch_embedding.weight', 'embeddings.patch_embedding.bias',
        'embeddings.position_embedding.weight']
    assert 'encoder.layers.1.self_attn.out_proj.bias' in names
    assert names[-1] == 'post_layernorm.bias'


def test_a_token_holds_the_patches_of_its_block_row_by_row():
    patches = torch.arange(16)[None, :, None]  # 4 x 4
    assert shuffle_pixels(patches, 2).tolist() == [
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    whole = torch.randn(2, 64, 5)
    torch.testing.assert_close(shuffle_pixels(whole, 1), whole)
    assert shuffle_pixels(whole, 4).shape == (2, 4, 80)
