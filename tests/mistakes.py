"""Every mistake that the command line must answer with one block and exit code 2.

Per mistake the command, the error's name, and words that its text must hold. M stands
for a real model, {files} for a folder of good and bad inputs, {tmp} for an empty one.
"""

EXTRACT = "extract --model M --out {tmp}/new.safetensors"
STEER = "steer --model M --prompt Once --max-new-tokens 3"
INVERT = "invert --model M --prompt Once --max-tokens 3"
AUDIT = "audit --model M --config {files}/small.toml --out {tmp}/run"
REACH = AUDIT + " --vector {files}/v.safetensors --audits states"
WRONG = {
    "a vector of the wrong width": (
        STEER + " --vector {files}/wide.safetensors",
        "ShapeMismatch",
        ["65 wide", "64 wide"],
    ),
    "a vector of the wrong width in an audit": (
        AUDIT + " --prompts {files}/prompts.txt --vector {files}/wide.safetensors",
        "ShapeMismatch",
        ["65 wide", "64 wide"],
    ),
    "NaN in a vector": (
        STEER + " --vector {files}/nan.safetensors",
        "NonFiniteVector",
        ["1 of", "64 entries"],
    ),
    "a vector without a direction": (
        STEER + " --vector {files}/zero.safetensors",
        "ZeroVector",
        ["zero"],
    ),
    "a truncated vector": (
        STEER + " --vector {files}/cut.safetensors",
        "CorruptVector",
        ["cut.safetensors"],
    ),
    "a vector file of another kind": (
        STEER + " --vector {files}/text.safetensors",
        "CorruptVector",
        ["text.safetensors"],
    ),
    "a vector file that is not there": (
        STEER + " --vector {files}/none.safetensors",
        "NoSuchFile",
        ["none.safetensors"],
    ),
    "a vector of a layer out of range": (
        STEER + " --vector {files}/high.safetensors",
        "LayerOutOfRange",
        ["layer 9", "0 to 4"],
    ),
    "a layer out of range": (
        EXTRACT + " --pairs {files}/pairs.jsonl --layer 5",
        "LayerOutOfRange",
        ["layer 5", "0 to 4"],
    ),
    "a layer out of range in an audit": (
        AUDIT + " --pairs {files}/pairs.jsonl --layer 17",
        "LayerOutOfRange",
        ["layer 17", "0 to 4"],
    ),
    "an empty pairs file": (
        EXTRACT + " --pairs {files}/empty.jsonl",
        "BadPairs",
        ["empty.jsonl", "empty"],
    ),
    "an empty pairs file in an audit": (
        AUDIT + " --pairs {files}/empty.jsonl",
        "BadPairs",
        ["empty.jsonl", "empty"],
    ),
    "a malformed line of pairs": (
        EXTRACT + " --pairs {files}/broken.jsonl",
        "BadPairs",
        ["line 3", "broken.jsonl", "nonsense"],
    ),
    "a line of pairs without one side": (
        AUDIT + " --pairs {files}/one-sided.jsonl",
        "BadPairs",
        ["line 5", "negative"],
    ),
    "a pairs file that is not there": (
        EXTRACT + " --pairs {files}/none.jsonl",
        "NoSuchFile",
        ["none.jsonl"],
    ),
    "a model without a tokenizer": (
        "steer --model {files}/mute --prompt Once --vector {files}/v.safetensors",
        "NoTokenizer",
        ["mute"],
    ),
    "truncated weights": (
        "steer --model {files}/cut-model --prompt Once --vector {files}/v.safetensors",
        "CannotLoadModel",
        ["cut-model"],
    ),
    "a folder without a model": (
        "steer --model {files}/no-model --prompt Once --vector {files}/v.safetensors",
        "CannotLoadModel",
        ["config.json"],
    ),
    "a probe whose AUC is too low": (
        AUDIT + " --pairs {files}/pairs.jsonl --probe {files}/blind.toml",
        "ProbeRefused",
        ["AUC of 0.00", "0.8"],
    ),
    "an alpha that makes logits non-finite": (
        STEER + " --vector {files}/v.safetensors --alpha 1e38",
        "NonFiniteLogits",
        ["alpha = 1e+38", "layer 2"],
    ),
    "an alpha that makes logits non-finite in an audit": (
        AUDIT
        + " --prompts {files}/prompts.txt --vector {files}/v.safetensors --alpha 1e38",
        "NonFiniteLogits",
        ["1e+38"],
    ),
    "an alpha whose square overflows": (
        STEER + " --vector {files}/short.safetensors --alpha 1e22",
        "NonFiniteLogits",
        ["alpha = 1e+22", "layer 2"],
    ),
    "an infinite alpha": (
        STEER + " --vector {files}/v.safetensors --alpha inf",
        "InputError",
        ["inf"],
    ),
    "an unknown trait": (
        EXTRACT + " --trait cheerfulness",
        "BadTrait",
        ["cheerfulness", "formality"],
    ),
    "an unknown trait in an audit": (
        AUDIT + " --trait cheerfulness",
        "BadTrait",
        ["cheerfulness"],
    ),
    "an unknown scope": (
        STEER + " --vector {files}/v.safetensors --scope everywhere",
        "InputError",
        ["everywhere", "generating"],
    ),
    "an unknown scope in an audit": (
        AUDIT + " --pairs {files}/pairs.jsonl --scope everywhere",
        "InputError",
        ["everywhere"],
    ),
    "an unknown position": (
        EXTRACT + " --pairs {files}/pairs.jsonl --position first",
        "InputError",
        ["first", "response-mean"],
    ),
    "no source of a vector": (AUDIT, "BadSpec", ["nothing to audit"]),
    "no source of pairs": (EXTRACT, "BadSpec", ["--trait", "--pairs"]),
    "two sources of pairs": (
        EXTRACT + " --pairs {files}/pairs.jsonl --trait formality",
        "BadSpec",
        ["not both"],
    ),
    "an unknown key in a run file": (
        "audit --model M --config {files}/misspelt.toml --out {tmp}/run",
        "BadSpec",
        ["num_promts", "num_prompts"],
    ),
    "an unknown preset": (AUDIT + " --preset huge", "BadSpec", ["huge", "quick"]),
    "an unknown audit": (AUDIT + " --audits magic", "BadSpec", ["magic", "plumbing"]),
    "an unknown precision": (
        STEER + " --vector {files}/v.safetensors --dtype float7",
        "Error",
        ["float7"],
    ),
    "a strength of 0": (AUDIT + " --alpha 0", "BadSpec", ["alpha is 0"]),
    "a folder that holds something else": (
        "audit --model M --pairs {files}/pairs.jsonl --out {files}",
        "StoreError",
        ["something else"],
    ),
    "a file in the place of the folder": (
        "audit --model M --pairs {files}/pairs.jsonl --out {files}/v.safetensors",
        "StoreError",
        ["something else"],
    ),
    "a report of no run": ("report {files}", "StoreError", ["findings.json"]),
    "printed tables in a folder that is not there": (
        "paper-tables {files}/none",
        "NoSuchFile",
        ["no folder", "table1.csv"],
    ),
    "printed tables in a folder without any": (
        "paper-tables {files} --markdown",
        "NoSuchFile",
        ["table1.csv does not exist"],
    ),
    "a file in the place of a folder of printed tables": (
        "paper-tables {files}/pairs.jsonl",
        "NoSuchFile",
        ["no folder", "pairs.jsonl"],
    ),
    "an empty prompt to invert": (
        INVERT + " --prompt=",
        "BadPrompts",
        ["prompt 2 of 2 is empty"],
    ),
    "a layer out of range to invert": (
        INVERT + " --layer 5",
        "LayerOutOfRange",
        ["layer 5", "0 to 4"],
    ),
    "a vector of the wrong width whose states are to be inverted": (
        INVERT + " --vector {files}/wide.safetensors",
        "ShapeMismatch",
        ["65 wide", "64 wide"],
    ),
    "an alpha whose states are no numbers": (
        INVERT + " --vector {files}/v.safetensors --alpha 1e38",
        "NonFiniteLogits",
        ["alpha = 1e+38", "layer 2"],
    ),
    "another layer than the vector's to invert": (
        INVERT + " --vector {files}/v.safetensors --layer 3",
        "BadSpec",
        ["--layer 3", "layer 2", "--read-layer"],
    ),
    "states read below the vector": (
        INVERT + " --vector {files}/v.safetensors --read-layer 1",
        "BadSpec",
        ["--read-layer 1", "layer 2"],
    ),
    "states read above the last block": (
        INVERT + " --vector {files}/v.safetensors --read-layer 5",
        "LayerOutOfRange",
        ["layer 5", "0 to 4"],
    ),
    "a strength without a vector": (
        INVERT + " --alpha 2 --ablate",
        "BadSpec",
        ["--alpha and --ablate", "--vector"],
    ),
    "a strength of what is taken out": (
        INVERT + " --vector {files}/v.safetensors --alpha 2 --ablate",
        "BadSpec",
        ["no strength"],
    ),
    "an unknown tolerance": (
        INVERT + " --tolerance tight",
        "BadSpec",
        ["tight", "calibrated"],
    ),
    "a negative tolerance": (INVERT + " --tolerance=-1", "InputError", ["-1"]),
    "no token to invert": (
        "invert --model M --prompt Once --max-tokens 0",
        "BadSpec",
        ["--max-tokens is 0"],
    ),
    "a folder in the place of a file of inversions": (
        INVERT + " --out {files}",
        "BadSpec",
        ["is a folder"],
    ),
    "a way to steer that there is not": (
        REACH + " --steering rotation",
        "BadSpec",
        ["rotation", "addition, ablation"],
    ),
    "ablation beside audits of what is added": (
        AUDIT + " --vector {files}/v.safetensors --steering ablation",
        "BadSpec",
        ["adding a vector", "--audits reachability"],
    ),
    "ablation with a strength": (
        REACH + " --steering ablation --alpha 2",
        "BadSpec",
        ["alpha is 2", "no strength"],
    ),
    "a read layer that nothing reads": (
        AUDIT + " --vector {files}/v.safetensors --read-layer 3",
        "BadSpec",
        ["compares states", "--audits reachability"],
    ),
    "states of an audit read below the vector": (
        REACH + " --read-layer 1",
        "BadSpec",
        ["after block 1", "after block 2", "from 2 on"],
    ),
    "states of an audit read above the last block": (
        REACH + " --read-layer 5",
        "LayerOutOfRange",
        ["layer 5", "0 to 4"],
    ),
    "states read below the vector in a plan": (
        REACH + " --read-layer 1 --dry-run",
        "BadSpec",
        ["after block 1", "after block 2"],
    ),
    "states read above the last block in a plan": (
        REACH + " --read-layer 5 --dry-run",
        "LayerOutOfRange",
        ["layer 5", "0 to 4"],
    ),
    "a single prompt whose states are searched for": (
        REACH + " --reach-prompts 1",
        "BadSpec",
        ["--reach-prompts", "is 1", "at least 2"],
    ),
    "a search that may try nothing": (
        REACH + " --search-evaluations 0",
        "BadSpec",
        ["--search-evaluations", "is 0"],
    ),
    "too few prompts to hide any in": (
        REACH + " --prompts {files}/prompts.txt",
        "BadPrompts",
        ["reachability needs 12 prompts", "6 are left", "--num-prompts"],
    ),
    "an engine that there is not": (
        AUDIT + " --vector {files}/v.safetensors --engine nonsense",
        "BadSpec",
        ["no engine 'nonsense'", "--engine", "local, vllm"],
    ),
    "no worker at all": (
        AUDIT + " --vector {files}/v.safetensors --workers 0",
        "BadSpec",
        ["--workers is 0", "at least 1"],
    ),
    "no worker at all in a plan": (
        AUDIT + " --vector {files}/v.safetensors --workers=-2 --dry-run",
        "BadSpec",
        ["--workers is -2"],
    ),
    "workers beside a model in pieces": (
        AUDIT + " --vector {files}/v.safetensors --device-map auto --workers 2",
        "BadSpec",
        ["--device-map auto", "each load a whole model", "RAY_ADDRESS"],
    ),
    "a device map that there is not": (
        AUDIT + " --vector {files}/v.safetensors --device-map nonsense",
        "CannotLoadModel",
        ["device"],
    ),
    "two places for a model": (
        AUDIT + " --vector {files}/v.safetensors --device cpu --device-map auto",
        "InputError",
        ["device and device_map"],
    ),
    "looks at an audit that has none": (
        AUDIT + " --vector {files}/v.safetensors --sequential --audits geometry",
        "BadSpec",
        ["sequential", "spectrum", "Only T1, T3 and T4"],
    ),
    "looks at an audit that has none in a plan": (
        AUDIT + " --vector {files}/v.safetensors --sequential --audits core,logits"
        " --dry-run",
        "BadSpec",
        ["with logits", "Only T1, T3 and T4"],
    ),
    "looks at too few prompts": (
        AUDIT + " --vector {files}/v.safetensors --sequential --num-prompts 20",
        "BadSpec",
        ["20 prompts in cells of 10", "nowhere to stop", "at least 21 prompts"],
    ),
    "looks at T0": (
        AUDIT + " --vector {files}/v.safetensors --sequential --audits plumbing",
        "BadSpec",
        ["T0 alone"],
    ),
    "a chat template that is not there": (
        INVERT + " --chat",
        "BadPrompts",
        ["chat template"],
    ),
}
