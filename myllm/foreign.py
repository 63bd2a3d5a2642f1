"""Room: the names that other programs use → those of this one. Imports nothing.

Who comes from nanoGPT, from a trainer on top of transformers, from llama.cpp or Ollama types what
is right there. These tables say what it is here, for messages: nothing is accepted because of
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Names of flags elsewhere (`_` and `-` are one), and what there is here: the first text that fits.
# `--flag …` fits a verb that has the flag, `PLACE {}` one that takes it by its place, any other
# text each verb. `@verb …` is for these verbs only; {} is the value that was given.
_FLAGS: tuple[tuple[str, ...], ...] = (
    # time
    ("epoch e num-epochs n-epochs num-train-epochs max-epochs epochs",
     "--epochs {}", "--max-steps N or --minutes M says how long it trains"),
    ("max-iters iters num-iters n-iters num-iterations iterations iter steps num-steps n-steps "
     "train-steps num-train-steps max-train-steps total-steps training-steps train-iters",
     "--max-steps {}", "--iterations {}"),
    ("time max-time duration max-minutes hours time-limit timeout", "--minutes M"),
    # shape
    ("n-embd n-embed embed-dim embedding-dim emb-dim embedding-size embedding-length dim "
     "model-dim hidden-size hidden-dim hidden hidden-units width d-embed", "--d-model {}"),
    ("n-layer num-layers num-hidden-layers layers depth nlayers nlayer n-blocks num-blocks "
     "num-transformer-layers block-count", "--n-layers {}"),
    ("n-head num-heads num-attention-heads heads nhead nheads head-count", "--n-heads {}"),
    ("num-key-value-heads n-kv-head num-kv-heads kv-heads n-query-groups num-query-groups",
     "--n-kv-heads {}"),
    ("intermediate-size ffn-dim n-inner ff-dim ffn-hidden-size mlp-dim d-inner dim-feedforward "
     "feed-forward-length", "--d-ff {}"),
    ("max-length", "@train --context-length {}", "--max-new-tokens {}"),
    ("block-size block seq-len seq-length seqlen sequence-len max-seq-length max-seq-len n-ctx "
     "ctx-size ctx-len ctx num-ctx context context-size context-window context-len c cutoff-len "
     "max-position-embeddings n-positions model-max-length max-sequence-length",
     "--context-length {}", "a model looks back as far as myllm train --context-length said"),
    ("vocab vocabulary-size n-vocab num-tokens-vocab", "--vocab-size {}"),
    ("tie-word-embeddings weight-tying tied", "--tie-weights"),
    ("dropout-rate drop attn-pdrop resid-pdrop embd-pdrop attention-dropout hidden-dropout",
     "--dropout {}"),
    ("flash flash-attn flash-attention use-flash-attention-2 fa", "--attention flash"),
    ("attn-implementation attn", "--attention {}"),
    ("rope-freq-base", "--rope-theta {}"),
    # training
    ("lr peak-lr max-lr eta learn-rate", "--learning-rate {}"),
    ("min-lr", "--min-learning-rate 0.1: a share of the peak, not a rate"),
    ("decay-lr", "--schedule cosine decays, --schedule constant does not"),
    ("lr-decay-iters decay-steps", "the learning rate decays over all of --max-steps"),
    ("warmup warmup-iters num-warmup-steps lr-warmup-steps lr-warmup", "--warmup-steps {}"),
    ("warmup-ratio", "--warmup-steps N: a number of steps"),
    ("lr-scheduler-type lr-scheduler scheduler lr-schedule lr-scheduler-name", "--schedule {}"),
    ("optim", "--optimizer {}"),
    ("wd l2", "--weight-decay {}"),
    ("beta1 beta2 adam-beta1 adam-beta2 adam-epsilon betas momentum",
     "the optimizers' betas are fixed; --learning-rate and --weight-decay can be set"),
    ("max-grad-norm clip grad-norm gradient-clipping clip-grad gradient-clip-val max-norm",
     "--grad-clip {}"),
    ("per-device-train-batch-size train-batch-size batch micro-batch-size device-batch-size b "
     "mini-batch-size bs per-gpu-train-batch-size global-batch-size", "--batch-size {}"),
    ("per-device-eval-batch-size eval-batch-size", "evaluation has the --batch-size of training"),
    ("gradient-accumulation-steps grad-accum accum grad-accumulation-steps grad-accum-steps "
     "gradient-accumulation accumulate-grad-batches", "--accumulation-steps {}"),
    ("gradient-checkpointing grad-checkpoint activation-ckpt", "--activation-checkpointing"),
    ("eval-steps evaluation-steps eval-every val-interval eval-freq val-check-interval",
     "--eval-interval {}"),
    ("save-steps save-every save-interval save-freq checkpoint-every checkpoint-interval",
     "--eval-interval {}: each evaluation saves a checkpoint"),
    ("logging-steps log-interval log-every log-freq log-every-n-steps",
     "--eval-interval {}: each evaluation is a line"),
    ("eval-iters eval-batches", "--eval-interval N: each evaluation reads all that is held out"),
    ("save-strategy evaluation-strategy eval-strategy logging-strategy",
     "--eval-interval N says after how many steps it evaluates and saves"),
    ("always-save-checkpoint",
     "the newest and the best checkpoint are always kept; --keep N keeps more"),
    ("save-total-limit keep-checkpoints max-checkpoints", "--keep {}"),
    ("early-stopping-patience early-stopping early-stop", "--patience {}"),
    ("load-best-model-at-end", "the best checkpoint is always the one that is used: leave it out"),
    ("bf16", "--dtype bfloat16"),
    ("fp16 half amp", "--dtype float16"),
    ("fp32 no-amp", "--dtype float32"),
    ("precision torch-dtype mixed-precision", "--dtype {}"),
    ("compile torch-compile", "--kernels compiled"),
    ("no-compile no-torch-compile enforce-eager eager", "--kernels plain"),
    ("lora lora-r lora-rank lora-alpha lora-dropout use-lora peft use-peft qlora load-in-4bit "
     "load-in-8bit lora-target-modules", "there is no LoRA here: --from RUN trains all weights"),
    ("deepspeed fsdp nproc-per-node ddp local-rank num-gpus devices n-gpus world-size "
     "num-processes", "a run has one device: --device cuda:1 names it"),
    ("wandb wandb-log wandb-project wandb-entity report-to log-with logger",
     "--tensorboard writes events into the run's folder; nothing is sent to a service"),
    ("log-dir logging-dir tensorboard-dir", "--tensorboard writes into the run's folder"),
    ("workers num-workers dataloader-num-workers preprocessing-num-workers dataset-num-proc",
     "texts need no workers to be read: leave it out"),
    ("packing group-by-length pad-to-max-length", "texts are always packed: leave it out"),
    ("do-train", "myllm train always does: leave it out"),
    ("do-eval eval-only do-predict", "myllm evaluate measures a trained run"),
    ("push-to-hub hub-model-id", "myllm export --to hf makes a folder that can be uploaded"),
    ("trust-remote-code", "other people's code is never run: leave it out"),
    # texts, models, places
    ("prompt p prompts start starting-text seed-text begin", "PROMPT {}"),
    ("dataset dataset-name dataset-path data-path data-file train-file train-files train-data "
     "training-file train-path text text-file corpus input input-file infile input-txt f file "
     "files path filename raw-data source src",
     "PATHS {}", "PATH {}", "@generate --prompt-file {}",
     "@write,chat what is typed is the prompt, line by line"),
    ("i", "PATHS {}", "PATH {}", "@generate,write,chat myllm write is the interactive mode"),
    ("val-file validation-file eval-file test-file val-data eval-dataset",
     "a tenth of the text is held out; myllm evaluate FILE measures another text"),
    ("validation-split val-ratio test-size val-fraction eval-split val-size split eval-ratio "
     "validation-split-percentage test-split", "--val-split: a tenth, spread or at the end"),
    ("dataset-text-field text-column text-key content-field", "--text-field {}"),
    ("eos-token eot-token doc-separator document-separator", "--separator {}"),
    ("tokenizer-name tokenizer-type tokenizer-path tokenizer-name-or-path", "--tokenizer bpe"),
    ("name run-name run-id experiment experiment-name exp-name project wandb-run-name",
     "@train,import,evaluate,generate,write,chat --run {}", "RUN {}"),
    ("model model-name model-path model-name-or-path model-id base-model checkpoint ckpt m "
     "pretrained-model-name-or-path model-type ckpt-path model-dir hf-path base pretrained "
     "init-from-model", "@train --from {}: a run, or what myllm import FOLDER made one of",
     "--run {}", "RUN {}", "PATH {}"),
    ("init-from", "@train --resume RUN goes on with a run, --from RUN begins with its model",
     "--run {}"),
    ("resume-from resume-from-checkpoint continue continue-from restore load-checkpoint load "
     "resume-run auto-resume", "--resume {}"),
    ("o out output out-file outfile output-file output-dir out-dir output-path save-dir save-path "
     "checkpoint-dir ckpt-dir save-to target dest destination dir workdir default-root-dir",
     "--out {}", "@train,import --run {}", "@evaluate the figures go to standard output: > {}",
     "@chat,write the text goes to standard output: > {}", "--runs-dir {}"),
    ("overwrite overwrite-output-dir force y yes exist-ok",
     "nothing is ever overwritten: leave it out, and name another --run or --out"),
    # the machine
    ("gpu cuda use-cuda use-gpu gpus", "--device cuda"),
    ("cpu no-cuda use-cpu no-gpu cpu-only", "--device cpu"),
    ("mps use-mps-device metal", "--device mps"),
    ("dev gpu-id main-gpu device-map", "--device {}"),
    ("ngl n-gpu-layers gpu-layers", "--device cuda: the whole model is there"),
    ("t threads n-threads num-threads nthreads cpu-threads num-cpus threads-batch",
     "--threads {}", "set OMP_NUM_THREADS={} in the environment"),
    ("mlock mmap no-mmap no-mlock numa", "the model is read into memory as it is: leave it out"),
    # writing
    ("max-tokens n n-predict num-predict num-tokens n-tokens tokens length len max-new "
     "max-gen-len max-completion-tokens max-gen-tokens max-token", "--max-new-tokens {}"),
    ("temp", "--temperature {}"),
    ("topk k", "--top-k {}"),
    ("topp nucleus", "--top-p {}"),
    ("repeat-penalty rep-pen rep-penalty frequency-penalty presence-penalty",
     "--repetition-penalty {}"),
    ("no-repeat-ngram-size repeat-last-n", "--repetition-penalty 1.2"),
    ("do-sample", "--temperature 0.8 samples, --temperature 0 takes the likeliest token"),
    ("greedy no-sample", "--temperature 0"),
    ("num-beams beams beam-size", "--temperature 0: there is no beam search"),
    ("num-return-sequences n-samples best-of", "--num-samples {}"),
    ("mirostat typical typical-p tfs xtc-probability",
     "--top-k, --top-p and --min-p leave out unlikely tokens"),
    ("stop-sequence stop-sequences stop-string stop-strings stop-token eos r reverse-prompt",
     "--stop {}"),
    ("ignore-eos", "--ignore-end"),
    ("min-tokens min-length min-new-tokens", "--ignore-end goes on past an end of text"),
    ("stream no-stream streaming", "texts always appear as they are written: leave it out"),
    ("interactive interactive-first chat conversation conv cnv instruct ins color repl it",
     "myllm write is the interactive mode"),
    ("system system-prompt sys", "a model continues its text: put this into the prompt"),
    ("seed", "--seed {}", "--sample-seed {}"),
    ("s random-seed rng-seed manual-seed random-state", "--seed {}", "--sample-seed {}"),
    # other programs
    ("format outtype output-format to-format type export-format", "--to {}"),
    ("gguf llama-cpp ollama", "--to gguf"),
    ("onnx", "--to onnx"),
    ("hf huggingface safetensors transformers", "--to hf"),
    ("quant quantization q bits qtype", "--quantize {}"),
    # talk
    ("v vv verbose log-level debug-level trace",
     "--debug shows where an error comes from; myllm --version tells the version"),
    ("version", "myllm --version tells the version"),
    ("silent no-progress disable-tqdm no-bar", "--quiet"),
    ("dry-run print-config", "--show-settings"),
    ("config-file cfg config-path", "--config {}"),
    ("help-full help-advanced usage", "--help-all shows all flags"),
)  # fmt: skip

# Verbs elsewhere, and the verb here, or how to do it.
_VERBS: tuple[tuple[str, str], ...] = (
    ("finetune fine-tune sft resume", "myllm train FILE --from RUN begins with a model, --resume "
     "RUN goes on"),
    ("fit learn pretrain pre-train training create new demo start begin", "train"),
    ("sample gen complete predict infer inference continue prompt text-generation ask say",
     "generate"),
    ("run", "myllm write --run RUN, or myllm generate \"Once upon\" --run RUN"),
    ("interactive repl shell ui play talk", "write"),
    ("list ls ps models show info history status", "runs"),
    ("rm remove delete del cp copy mv rename",
     "a run is a folder in checkpoints/: delete, copy or rename that"),
    ("eval test validate perplexity ppl score measure eval-model", "evaluate"),
    ("convert save to-gguf gguf onnx quantize merge", "export"),
    ("pull download fetch load", "myllm import FOLDER reads a model that is on this machine"),
    ("serve server api", "myllm export --to gguf makes what llama.cpp and Ollama serve"),
    ("push publish upload", "myllm export --to hf makes a folder that can be uploaded"),
    ("tokenize tokenise encode preprocess data prepare-data tokenizer", "prepare"),
    ("check fsck doctor", "verify"),
    ("bench speed profile", "benchmark"),
    ("inspect batch show-batch", "inspect-batch"),
    ("completions autocomplete", "completion"),
    ("init setup config configure install", "nothing needs to be set up: myllm train FILE"),
    ("stop kill quit exit", "Ctrl-C stops a run, and saves it"),
    ("version", "myllm --version"),
)  # fmt: skip

# Values elsewhere, by the kind of choice: the ones here.
_VALUES: dict[str, tuple[tuple[str, str], ...]] = {
    "device": (
        ("gpu nvidia rocm", "cuda"), ("metal apple m1 gpu", "mps"), ("processor x86", "cpu"),
    ),
    "dtype": (
        ("fp16 f16 half 16 16-mixed", "float16"),
        ("bf16 brainfloat16 bf16-mixed bfloat", "bfloat16"),
        ("fp32 f32 float full single 32 tf32 no", "float32"),
    ),
    "optimizer": (
        ("adam adamw-torch adamw-torch-fused adamw-hf adamw-8bit paged-adamw-8bit adafactor sgd "
         "paged-adamw-32bit adamw-bnb-8bit lion rmsprop", "adamw"),
    ),
    "schedule": (
        ("linear linear-decay linear-with-warmup", "linear_warmup"),
        ("cosine-annealing cosine-with-restarts cosine-with-min-lr cosine-decay", "cosine"),
        ("constant-with-warmup none flat fixed", "constant"),
        ("onecycle onecyclelr", "one_cycle"),
        ("warmup-stable-decay trapezoidal", "wsd"),
    ),
    "tokenizer": (
        ("gpt2 tiktoken sentencepiece unigram byte bytes wordpiece subword spm auto", "bpe"),
        ("character characters chars char-level", "char"),
    ),
    "preset": (
        ("nanogpt gpt gpt2-small gpt2-medium", "gpt2"),
        ("qwen qwen2 qwen3 default", "modern"),
        ("llama2 llama3 mistral", "llama"),
    ),
    "size": (("small tiny nano laptop mini", "cpu"), ("medium cuda", "gpu"),
             ("large gpt2 gpt2-small base", "124m")),
    "position": (("rope rotary-embedding", "rotary"), ("absolute embedding", "learned")),
    "norm": (("rms", "rmsnorm"), ("ln layer", "layernorm")),
    "feed_forward": (("silu glu swish", "swiglu"), ("mlp relu gelu-new", "gelu")),
    "attention": (("sdpa flash-attention-2 flash-attn fused", "flash"), ("eager math", "manual")),
    "format": (
        ("huggingface transformers safetensors pytorch vllm hugging-face", "hf"),
        ("llama.cpp llamacpp ollama lmstudio ggml", "gguf"),
    ),
    "quantize": (
        ("q8 int8 8 8bit", "q8_0"), ("q4 int4 4 4bit q4-k-m q4-k-s q4-k", "q4_0"),
        ("q5 q5-k-m q5-k-s q5-k", "q5_0"), ("fp16 float16 half 16", "f16"),
        ("fp32 float32 32 none", "f32"), ("bfloat16", "bf16"),
    ),
    "corpus": (("tinyshakespeare shakespeare-char tiny-shakespeare", "shakespeare"),),
    "val_split": (("random uniform", "spread"), ("last tail", "end")),
    "on_bad_file": (("ignore", "skip"), ("error raise fail strict", "stop")),
    "on_nonfinite": (("skip", "rollback"), ("error raise fail", "stop")),
}  # fmt: skip

FLAGS = {name: row[1:] for row in _FLAGS for name in row[0].split()}
VERBS = {name: what for names, what in _VERBS for name in names.split()}
KINDS = {"to": "format", "data": "corpus"}  # flags whose choices are called otherwise


def plain(name: str) -> str:
    """A name as the tables spell it.

    >>> plain("--max_Iters"), plain("sample.py")
    ('max-iters', 'sample')
    """
    return name.lstrip("-").lower().replace("_", "-").removesuffix(".py")


def last(name: str) -> str:
    """As `plain`, without the sections that some programs put before a name.

    >>> last("--train.max_iters")
    'max-iters'
    """
    return plain(name).rpartition(".")[2]


def squeezed(name: str) -> str:
    """A name by its letters and digits alone, as people misremember the rest.

    >>> squeezed("--learningRate") == squeezed("learning_rate")
    True
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def values(kind: str, value: str, choices: Iterable[str]) -> list[str]:
    """The choices of this program that are meant by a value of another one.

    >>> values("device", "GPU", ["cpu", "cuda", "mps"])
    ['cuda', 'mps']
    """
    known = _VALUES.get(kind, ())
    meant = [ours for names, ours in known if squeezed(value) in map(squeezed, names.split())]
    return [choice for choice in choices if choice in meant]


def value_here(flag: str, value: str) -> str:
    """A value of a flag as this program spells it; what the tables do not know stays.

    >>> value_here("schedule", "linear"), value_here("d-model", "64")
    ('linear_warmup', '64')
    """
    name = flag.replace("-", "_")
    kind = KINDS.get(name, name)
    known = [ours for _, ours in _VALUES.get(kind, ())]
    return next(iter(values(kind, value, known)), value)


def settings(name: str, known: Iterable[str]) -> list[str]:
    """The settings of this program that another one calls `name`.

    >>> settings("n_embd", ["d_model"])
    ['d_model']
    """
    found = (re.match(r"(?:@\S+ )?--([a-z-]+)", text) for text in FLAGS.get(plain(name), ()))
    ours = [match[1].replace("-", "_") for match in found if match]
    return [o for o in dict.fromkeys(ours) if o in set(known)][:1]
