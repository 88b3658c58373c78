# ruff: noqa: E501  (tables of options)
"""Real architectures at tiny sizes with random weights, by family: ``models()`` maps names to makers of (model, inputs).

timm, segmentation_models_pytorch and diffusers need no torchvision to build a model, but some import it; where it cannot
be had, ``stub_torchvision`` stands in for it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, Any]
Maker = Callable[[], Made]

TIMM = [
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "test_efficientnet",
    "test_efficientnet_gn",
    "test_efficientnet_ln",
    "test_byobnet",
    "test_convnext",
    "test_convnext2",
    "test_convnext3",
    "test_mambaout",
    "test_nfnet",
    "resnet10t",
    "resnet14t",
    "resnet26",
    "res2net50_14w_8s",
    "seresnet18",
    "skresnet18",
    "resnest14d",
    "resnext26ts",
    "densenet121",
    "mixnet_s",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "efficientnet_lite0",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvit_b0",
    "efficientvit_m0",
    "edgenext_xx_small",
    "convnextv2_atto",
    "convnext_atto",
    "convmixer_768_32",
    "repvgg_a0",
    "repghostnet_050",
    "ghostnet_050",
    "ghostnetv2_100",
    "tinynet_e",
    "vgg11_bn",
    "inception_v3",
    "inception_v4",
    "xception41",
    "dla34",
    "dpn48b",
    "cspresnet50",
    "cspdarknet53",
    "darknet17",
    "hrnet_w18_small",
    "regnetx_002",
    "regnety_002",
    "selecsls42",
    "semnasnet_075",
    "mnasnet_small",
    "nf_regnet_b0",
    "nfnet_l0",
    "resnetv2_50",
    "lcnet_035",
    "hardcorenas_a",
    "fbnetv3_b",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "pit_ti_224",
    "levit_128s",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "mixer_s32_224",
    "gmixer_12_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "poolformer_s12",
    "poolformerv2_s12",
    "caformer_s18",
    "convformer_s18",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "coat_tiny",
    "convit_tiny",
    "focalnet_tiny_srf",
    "maxvit_pico_rw_256",
    "mvitv2_tiny",
    "nest_tiny",
    "pvt_v2_b0",
    "sequencer2d_s",
    "starnet_s1",
    "twins_svt_small",
    "visformer_tiny",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
    "tnt_s_patch16_224",
    "fastvit_t8",
    "repvit_m1",
    "rdnet_tiny",
    "inception_next_atto",
    "hiera_tiny_224",
    "davit_tiny",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "gcvit_xxtiny",
    "coatnet_pico_rw_224",
    "bat_resnext26ts",
    "eca_resnet33ts",
    "gcresnext26ts",
    "lambda_resnet26t",
    "halonet26t",
    "botnet26t_256",
    "haloregnetz_b",
    "legacy_seresnet18",
    "ese_vovnet19b_dw",
]
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4}
"""For vision transformers that are only made large."""

TRANSFORMERS = [
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "electra",
    "deberta",
    "deberta-v2",
    "mpnet",
    "convbert",
    "funnel",
    "layoutlm",
    "xlnet",
    "xlm",
    "ctrl",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "bloom",
    "falcon",
    "opt",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "stablelm",
    "olmo",
    "olmo2",
    "cohere",
    "starcoder2",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "granite",
    "mamba",
    "mamba2",
    "rwkv",
    "recurrent_gemma",
    "t5",
    "mt5",
    "umt5",
    "bart",
    "mbart",
    "pegasus",
    "marian",
    "blenderbot",
    "led",
    "longformer",
    "big_bird",
    "fsmt",
    "whisper",
    "speech_to_text",
    "wav2vec2",
    "hubert",
    "wavlm",
    "sew",
    "unispeech",
    "data2vec-audio",
    "vit",
    "deit",
    "beit",
    "swin",
    "swinv2",
    "convnext",
    "convnextv2",
    "resnet",
    "regnet",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilevit",
    "mobilevitv2",
    "segformer",
    "dpt",
    "focalnet",
    "poolformer",
    "pvt",
    "pvt_v2",
    "levit",
    "cvt",
    "bit",
    "dinov2",
    "dinat",
    "nat",
    "hiera",
    "vit_mae",
    "vit_msn",
    "yolos",
    "detr",
    "conditional_detr",
    "deformable_detr",
    "table-transformer",
    "rt_detr",
    "upernet",
    "glpn",
    "efficientnet",
    "mgp-str",
    "trocr",
    "clip",
    "siglip",
    "blip",
    "vilt",
    "flava",
    "esm",
    "nystromformer",
    "mra",
    "yoso",
    "reformer",
    "switch_transformers",
    "splinter",
    "squeezebert",
    "mobilebert",
    "ibert",
    "canine",
    "roformer",
    "rembert",
    "xmod",
    "lxmert",
    "visual_bert",
    "tapas",
    "luke",
    "patchtst",
    "patchtsmixer",
    "time_series_transformer",
    "autoformer",
    "informer",
    "vits",
    "speecht5",
    "clap",
    "audio-spectrogram-transformer",
    "encodec",
    "univnet",
    "decision_transformer",
    "trajectory_transformer",
    "sam",
    "vitmatte",
    "depth_anything",
    "swin2sr",
    "superpoint",
    "timesformer",
    "videomae",
    "vivit",
    "xclip",
    "donut-swin",
    "perceiver",
    "mobilenet_v3",
    "seamless_m4t",
    "persimmon",
    "fuyu",
    "idefics",
    "olmo3",
    "smollm3",
    "ernie4_5",
    "glm",
    "nemotron",
    "bamba",
    "jetmoe",
    "dbrx",
    "gpt_oss",
    "deepseek_v3",
    "zamba",
    "falcon_mamba",
]

TINY: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 40,
    "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_ff": 40, "d_kv": 8, "ffn_dim": 40, "embedding_size": 32,
    "word_embed_proj_dim": 32, "head_dim": 8, "image_size": 32, "patch_size": 8, "type_vocab_size": 2, "rotary_dim": 4,
    "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "emb_dim": 32, "attention_window": 8, "expert_capacity": 8, "num_mel_bins": 16, "max_source_positions": 32,
    "max_target_positions": 32, "encoder_hidden_size": 32, "decoder_hidden_size": 32, "projection_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "dn_head": 8, "n_inner": 40,
    "global_rms": 1, "state_size": 8, "time_step_rank": 4, "expand": 2, "layer_types": None, "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1, "inner_dim": 40, "d_inner": 40, "attention_hidden_size": 32, "num_buckets": 4,
    "block_size": 4, "num_random_blocks": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "v_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "first_k_dense_replace": 1, "sliding_window": 8, "conv_dim": None, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "attention_heads": 4, "ffn_hidden_size": 40, "n_shared_experts": 1,
    "mamba_d_state": 8, "hidden_sizes": None, "max_seq_len": 64, "ffn_config": None, "prediction_length": 4,
    "context_length": 8, "lags_sequence": [1, 2], "num_input_channels": 3, "lru_width": 32,
}  # fmt: skip
"""Values for those entries of a config that its class has; None keeps the default."""


class _Empty(type):
    """The class of empty classes, whose attributes are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Anything(types.ModuleType):
    """A module in which every public name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__version__"] = "0.0.0"


def stub_torchvision() -> None:
    """Let ``import torchvision`` succeed where it is not installed; nothing in it works."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Finder())


def preload() -> None:
    """Import the libraries, so that processes forked from this one need not."""
    _ = importlib.import_module("transformers").AutoModel  # before the stub, which it would take for torchvision
    stub_torchvision()
    for name in ("timm", "monai.networks.nets", "segmentation_models_pytorch", "diffusers"):
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"without {name}: {error}")


def models(families: str = "") -> dict[str, Maker]:
    """Return makers by name, ``family:model``."""
    found: dict[str, Maker] = {}
    for family, names, make in FAMILIES:
        if family in families or not families:
            found |= {f"{family}:{name}": lambda name=name, make=make: make(name) for name in names}
    return found


def of_timm(name: str) -> Made:
    timm = importlib.import_module("timm")
    size = timm.get_pretrained_cfg(name).input_size[1] if timm.is_model_pretrained(name) else 224
    for image in (64, 96, 128, size):
        for options in ({"img_size": image}, {}):
            try:
                model = timm.create_model(name, num_classes=10, **options).eval()
                x = torch.randn(2, 3, image, image)
                with torch.no_grad():
                    model(x)
                return model, x
            except Exception as error:
                problem = error
    raise problem


def of_transformers(name: str) -> Made:
    transformers = importlib.import_module("transformers")
    config = _tiny_config(transformers, name)
    model = transformers.AutoModel.from_config(config).eval()
    return model, _first_that_runs(model, config)


def _tiny_config(transformers: Any, name: str) -> Any:
    kind = transformers.CONFIG_MAPPING[name]
    default = kind()
    values = {key: value for key, value in TINY.items() if value is not None and key in vars(default)}
    nested = {
        key: {k: v for k, v in TINY.items() if v is not None and k in vars(each)}
        for key, each in vars(default).items()
        if isinstance(each, transformers.PretrainedConfig)
    }
    for key, value in vars(default).items():  # what has a value for each layer or stage
        if isinstance(value, (list, tuple)) and value and all(type(each) is int for each in value):
            if key in ("hidden_sizes", "embed_dims", "embed_dim", "conv_dim", "tdnn_dim", "neck_hidden_sizes"):
                values[key] = type(value)(min(each, 8 * (k + 2)) for k, each in enumerate(value))
            elif key in ("depths", "num_blocks", "layer_depths"):
                values[key] = type(value)(1 for _ in value)
    for tried in ({**values, **nested}, values, {k: v for k, v in values.items() if k in _SURE}, {}):
        try:
            config = kind(**tried)
            transformers.AutoModel.from_config(config)
            break
        except Exception as error:
            problem = error
    else:
        raise problem
    return config


_SURE = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "image_size")


def _first_that_runs(model: nn.Module, config: Any) -> Any:
    ids = torch.arange(16).view(2, 8) % 50 + 3
    size = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", 64)
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.randn(2, getattr(config, "num_channels", 3) or 3, height, width)
    channels = getattr(config, "num_mel_bins", 16)
    candidates: list[Any] = [
        {"input_ids": ids},
        {"pixel_values": image},
        {"pixel_values": torch.randn(2, 3, 64, 64)},
        {"pixel_values": torch.randn(2, 3, 224, 224)},
        {"input_ids": ids, "decoder_input_ids": ids[:, :4]},
        {"input_ids": ids, "pixel_values": image},
        {"input_values": torch.randn(2, 2000)},
        {"input_features": torch.randn(2, channels, 64), "decoder_input_ids": ids},
        {"input_features": torch.randn(2, 32, channels), "decoder_input_ids": ids},
        {"input_values": torch.randn(2, 1, 2000)},
        {"input_values": torch.randn(2, 1024, 128)},
        {"pixel_values": torch.randn(2, getattr(config, "num_frames", 4) or 4, 3, height, width)},
        {"past_values": torch.randn(2, getattr(config, "context_length", 8), getattr(config, "num_input_channels", 1))},
        {"input_ids": ids, "bbox": torch.zeros(2, 8, 4, dtype=torch.long)},
    ]  # fmt: skip
    for inputs in candidates:
        try:
            with torch.no_grad():
                model(**inputs)
            return inputs
        except Exception as error:
            problem = error
    raise RuntimeError(f"no inputs run: {problem}")


def of_monai(name: str) -> Made:
    nets = importlib.import_module("monai.networks.nets")
    three, x = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, torch.randn(1, 1, 32, 32, 32)
    options: dict[str, dict[str, Any]] = {
        "UNet": {**three, "channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1},
        "AttentionUnet": {**three, "channels": (4, 8, 16), "strides": (2, 2)},
        "BasicUNet": {**three, "features": (4, 4, 8, 8, 16, 4)},
        "BasicUNetPlusPlus": {**three, "features": (4, 4, 8, 8, 16, 4)},
        "SegResNet": {**three, "init_filters": 8},
        "SegResNetVAE": {**three, "init_filters": 8, "input_image_size": (32, 32, 32)},
        "DynUNet": {**three, "kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (4, 8, 16)},
        "VNet": {**three},
        "HighResNet": {**three},
        "DenseNet121": {**three},
        "SEResNet50": {"spatial_dims": 3, "in_channels": 1, "num_classes": 2},
        "UNETR": {**three, "img_size": (32, 32, 32), "feature_size": 4, "hidden_size": 32, "mlp_dim": 40, "num_heads": 4},
        "SwinUNETR": {"in_channels": 1, "out_channels": 2, "feature_size": 12},
        "ViT": {"in_channels": 1, "img_size": (32,) * 3, "patch_size": (16,) * 3, "hidden_size": 32, "mlp_dim": 40, "num_layers": 2, "num_heads": 4},
        "FlexibleUNet": {"in_channels": 1, "out_channels": 2, "backbone": "efficientnet-b0", "spatial_dims": 2},
        "EfficientNetBN": {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 2, "in_channels": 1, "num_classes": 2},
        "AutoEncoder": {**three, "channels": (4, 8), "strides": (2, 2)},
        "AHNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
    }  # fmt: skip
    if name in ("FlexibleUNet", "EfficientNetBN"):
        x = torch.randn(1, 1, 64, 64)
    return getattr(nets, name)(**options[name]).eval(), x


def of_segmentation(name: str) -> Made:
    smp = importlib.import_module("segmentation_models_pytorch")
    encoder = "mit_b0" if name == "Segformer" else "tu-resnet10t"
    return getattr(smp, name)(encoder, encoder_weights=None, classes=2).eval(), torch.randn(2, 3, 64, 64)


def of_diffusers(name: str) -> Made:
    diffusers, x = importlib.import_module("diffusers"), torch.randn(1, 4, 16, 16)
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
    t, states = torch.tensor([3]), torch.randn(1, 5, 32)
    image = torch.randn(1, 3, 32, 32)
    table: dict[str, Callable[[], Made]] = {
        "UNet2DModel": lambda: (diffusers.UNet2DModel(sample_size=16, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, **blocks), (x, t)),
        "UNet2DConditionModel": lambda: (diffusers.UNet2DConditionModel(sample_size=16, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8, **blocks), (x, t, states)),
        "AutoencoderKL": lambda: (diffusers.AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, **blocks), (image,)),
        "VQModel": lambda: (diffusers.VQModel(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks), (image,)),
        "AutoencoderTiny": lambda: (diffusers.AutoencoderTiny(encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)), (image,)),
        "DiTTransformer2DModel": lambda: (diffusers.DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=8, num_layers=2, sample_size=16, norm_num_groups=4), (x, t, torch.tensor([1]))),
        "Transformer2DModel": lambda: (diffusers.Transformer2DModel(num_attention_heads=4, attention_head_dim=8, in_channels=16, norm_num_groups=4, cross_attention_dim=32), (torch.randn(1, 16, 8, 8), states)),
        "PixArtTransformer2DModel": lambda: (diffusers.PixArtTransformer2DModel(num_attention_heads=4, attention_head_dim=8, num_layers=2, sample_size=16, cross_attention_dim=32, caption_channels=32), {"hidden_states": x, "encoder_hidden_states": states, "timestep": t, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}),
        "UNet1DModel": lambda: (diffusers.UNet1DModel(sample_size=64, block_out_channels=(32, 32, 64)), (torch.randn(1, 2, 64), t)),
    }  # fmt: skip
    model, inputs = table[name]()
    return model.eval(), inputs


FAMILIES: tuple[tuple[str, list[str], Callable[[str], Made]], ...] = (
    ("timm", TIMM, of_timm),
    ("transformers", TRANSFORMERS, of_transformers),
    ("monai", ["UNet", "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "SegResNet", "SegResNetVAE", "DynUNet", "VNet", "HighResNet", "DenseNet121", "SEResNet50", "UNETR", "SwinUNETR", "ViT", "FlexibleUNet", "EfficientNetBN", "AutoEncoder", "AHNet"], of_monai),
    ("segmentation", ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer"], of_segmentation),
    ("diffusers", ["UNet2DModel", "UNet2DConditionModel", "AutoencoderKL", "VQModel", "AutoencoderTiny", "DiTTransformer2DModel", "Transformer2DModel", "PixArtTransformer2DModel", "UNet1DModel"], of_diffusers),
)  # fmt: skip
