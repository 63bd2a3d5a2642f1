"""What is said to people who type what is right elsewhere, or almost right here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_place import assert_refused

import myllm
from myllm import foreign
from myllm.cli.advice import about_option
from myllm.cli.main import VERBS
from myllm.cli.parse import UnknownOption, flags_of
from myllm.errors import ConfigError

# A command line, and what the answer must hold: of another program's flag ours, with its value.
NANOGPT = r"""
train t.txt --block_size=256              | here it is --context-length 256
train t.txt --n_embd 384                  | here it is --d-model 384
train t.txt --n_layer=6                   | here it is --n-layers 6
train t.txt --n_head 6                    | here it is --n-heads 6
train t.txt --max_iters=5000              | here it is --max-steps 5000
train t.txt --batch_size 12 --lr=1e-3     | here it is --learning-rate 1e-3
train t.txt --gradient_accumulation_steps=40 | here it is --accumulation-steps 40
train t.txt --warmup_iters=100            | here it is --warmup-steps 100
train t.txt --min_lr=6e-5                 | here it is --min-learning-rate 0.1: a share
train t.txt --decay_lr=False              | --schedule constant does not
train t.txt --lr_decay_iters=600000       | over all of --max-steps
train t.txt --beta2=0.99                  | betas are fixed
train t.txt --eval_iters=200              | here it is --eval-interval N
train t.txt --log_interval 10             | here it is --eval-interval 10
train t.txt --eval_only=True              | myllm evaluate
train t.txt --init_from=resume            | --resume RUN goes on with a run
train t.txt --init_from=gpt2-xl           | --from RUN begins with its model
train t.txt --out_dir=out-shakespeare     | here it is --run out-shakespeare
train t.txt --out_dir runs/mine           | here it is --run mine --runs-dir runs
train --dataset=t.txt                     | it goes without a flag: myllm train t.txt
train --dataset=shakespeare_char          | it goes without a flag: myllm train
train t.txt --compile=False               | here it is --kernels plain
train t.txt --compile False               | here it is --kernels plain
train t.txt --always_save_checkpoint=True | --keep N keeps more
train t.txt --wandb_log=True              | --tensorboard writes events
train t.txt --wandb_run_name=mini         | here it is --run mini
train t.txt batch_size=32                 | did you mean --batch-size 32?
train t.txt n_embd=384                    | here it is --d-model 384
train t.txt train.max_iters=9             | here it is --max-steps 9
train config/train_shakespeare_char.py    | settings are kept in TOML here: --config
train t.txt --config config/train_x.py    | settings are kept in TOML here: --config
train.py config/train_x.py                | here it is myllm train
prepare.py                                | here it is myllm prepare
sample.py --out_dir=out                   | here it is myllm generate
sample "Once upon"                        | here it is myllm generate 'Once upon'
generate --start="Once upon"              | it goes without a flag: myllm generate 'Once upon'
generate x --max_new_token 500            | did you mean --max-new-tokens 500?
"""
TRANSFORMERS = r"""
train t.txt --per_device_train_batch_size 8 | here it is --batch-size 8
train t.txt --output_dir ./out            | here it is --run out
train t.txt --model_name_or_path gpt2     | here it is --from gpt2: a run, or what myllm import
train t.txt --bf16                        | here it is --dtype bfloat16
train t.txt --bf16 True                   | here it is --dtype bfloat16
train t.txt --fp16                        | here it is --dtype float16
train t.txt --fp16 False                  | leave it out
train t.txt --torch_dtype bf16            | here it is --dtype bfloat16
train t.txt --lr_scheduler_type cosine    | here it is --schedule cosine
train t.txt --lr_scheduler_type linear    | here it is --schedule linear_warmup
train t.txt --warmup_ratio 0.1            | here it is --warmup-steps N: a number of steps
train t.txt --save_steps 500              | here it is --eval-interval 500: each evaluation saves
train t.txt --save_total_limit 3          | here it is --keep 3
train t.txt --logging_steps 10            | here it is --eval-interval 10: each evaluation is a
train t.txt --eval_strategy steps         | --eval-interval N says
train t.txt --max_seq_length 512          | here it is --context-length 512
train t.txt --hidden_size 256             | here it is --d-model 256
train t.txt --num_hidden_layers 4         | here it is --n-layers 4
train t.txt --num_attention_heads 4       | here it is --n-heads 4
train t.txt --num_key_value_heads 2       | here it is --n-kv-heads 2
train t.txt --intermediate_size 1024      | here it is --d-ff 1024
train t.txt --max_position_embeddings 64  | here it is --context-length 64
train t.txt --max_length 512              | here it is --context-length 512
train t.txt --max_grad_norm 1.0           | here it is --grad-clip 1.0
train t.txt --gradient_checkpointing      | here it is --activation-checkpointing
train t.txt --optim adamw_torch_fused     | here it is --optimizer adamw
train t.txt --attn_implementation sdpa    | here it is --attention flash
train t.txt --resume_from_checkpoint mine | here it is --resume mine
train t.txt --early_stopping_patience 3   | here it is --patience 3
train t.txt --report_to wandb             | nothing is sent to a service
train t.txt --overwrite_output_dir        | nothing is ever overwritten
train t.txt --dataset_text_field content  | here it is --text-field content
train t.txt --dataloader_num_workers 4    | texts need no workers
train t.txt --lora_r 8                    | there is no LoRA here
train t.txt --push_to_hub                 | myllm export --to hf
train t.txt --trust_remote_code           | other people's code is never run
train --train_file t.txt                  | it goes without a flag: myllm train t.txt
generate x --max_length 512               | here it is --max-new-tokens 512
generate x --do_sample                    | --temperature 0 takes the likeliest
generate x --num_beams 4                  | here it is --temperature 0: there is no beam search
generate x --num_return_sequences 3       | here it is --num-samples 3
train t.txt --model.d_model 32            | did you mean --d-model 32?
finetune t.txt                            | myllm train FILE --from RUN
eval t.txt                                | here it is myllm evaluate t.txt
"""
LLAMA_CPP = r"""
-m mine -p "Once upon" -n 128             | a verb comes first: myllm generate
generate -m mine -p "Once upon"           | here it is --run mine
generate -p "Once upon"                   | it goes without a flag: myllm generate 'Once upon'
generate x -n 128                         | here it is --max-new-tokens 128
generate x --n-predict 128                | here it is --max-new-tokens 128
generate x -c 2048                        | as myllm train --context-length said
generate x --ctx-size 2048                | as myllm train --context-length said
generate x --temp 0.7                     | here it is --temperature 0.7
generate x --topk 40                      | did you mean --top-k 40?
generate x --repeat-penalty 1.1           | here it is --repetition-penalty 1.1
generate x --seed 42                      | here it is --sample-seed 42
generate x -s 42                          | here it is --sample-seed 42
generate x -ngl 99                        | here it is --device cuda: the whole model
generate -f prompt.txt                    | here it is --prompt-file prompt.txt
generate x -i                             | myllm write
generate x --mirostat 2                   | --top-k, --top-p and --min-p
generate x --ignore-eos                   | here it is --ignore-end
generate x -r "User:"                     | here it is --stop User:
export --outtype f16                      | here it is --to
run llama3                                | myllm write --run RUN
run llama3 "why is the sky blue"          | myllm generate "Once upon" --run RUN
pull llama3                               | myllm import FOLDER
rm mine                                   | a run is a folder in checkpoints/
serve                                     | what llama.cpp and Ollama serve
create mine                               | here it is myllm train mine
convert mine                              | here it is myllm export mine
quantize mine                             | here it is myllm export mine
"""
ANYBODY = r"""
train t.txt --gpu                         | here it is --device cuda
train t.txt --cpu                         | here it is --device cpu
train t.txt --use_cuda                    | here it is --device cuda
train t.txt --name mine                   | here it is --run mine
train t.txt --prompt Once                 | it belongs to another verb: myllm generate Once
train --input t.txt                       | it goes without a flag: myllm train t.txt
train -i t.txt                            | it goes without a flag: myllm train t.txt
train t.txt -b 32                         | here it is --batch-size 32
train t.txt --steps 100                   | here it is --max-steps 100
train t.txt --layers 2                    | here it is --n-layers 2
train t.txt --verbose                     | --debug shows where an error comes from
train t.txt --max_tokens 9                | here it is --max-new-tokens, a flag of generate
train t.txt --temperature 0.5             | it is a flag of generate, write and chat, not of train
generate x --minutes 4                    | it is a flag of train, not of generate
generate x --max-tokens 50                | here it is --max-new-tokens 50
generate x --output out.txt               | here it is --out out.txt
generate x --stream                       | texts always appear as they are written
export mine -o out.gguf                   | here it is --out out.gguf
export mine --format gguf                 | here it is --to gguf
export mine --gguf                        | here it is --to gguf
verify --run mine                         | it goes without a flag: myllm verify mine
inspect-batch mine --step 3               | it goes without a flag: myllm inspect-batch RUN 3
benchmark --steps 3                       | here it is --iterations 3
train t.txt --max-step 10                 | did you mean --max-steps 10?
train t.txt --max 10                      | did you mean --max-steps 10?
train t.txt --learningrate 1e-3           | did you mean --learning-rate 1e-3?
train t.txt --learningRate=1e-3           | did you mean --learning-rate 1e-3?
train t.txt --Max-Steps 3                 | did you mean --max-steps 3?
train t.txt --d-modle 32                  | did you mean --d-model 32?
train t.txt --quite                       | did you mean --quiet?
train t.txt --learn 1                     | did you mean --learning-rate 1?
train t.txt --patience-evals 3            | did you mean --patience 3?
generate x --temprature 0.5               | did you mean --temperature 0.5?
generate x --top-n 3                      | did you mean --top-k 3 or --top-p 3?
generate -x                               | a text that begins with - goes behind --
verify --pres                             | did you mean --preset? it is a flag of train
train t.txt --zzz                         | myllm train --help-all lists all flags
gen "Once upon"                           | here it is myllm generate 'Once upon'
test                                      | here it is myllm evaluate
trian t.txt                               | did you mean train?
t.txt                                     | did you mean: myllm train t.txt
t.txt --minutes 3                         | did you mean: myllm train t.txt --minutes 3
./t.txt                                   | did you mean: myllm train ./t.txt
"Once upon a time"                        | did you mean: myllm generate 'Once upon a time'
--minutes 3                               | a verb comes first: myllm train --minutes 3
version                                   | here it is myllm --version
-v                                        | here it is myllm --version
help trian                                | did you mean train?
frobnicate                                | there are train, generate,
"""
# A value that is right elsewhere, and the one that is right here.
VALUES = r"""
train t.txt --device gpu                  | unknown device 'gpu': did you mean cuda or mps?
train t.txt --dtype fp16                  | did you mean float16?
train t.txt --dtype bf16                  | did you mean bfloat16?
train t.txt --optimizer adam              | did you mean adamw?
train t.txt --optimizer SGD               | did you mean adamw?
train t.txt --schedule linear             | did you mean linear_warmup?
train t.txt --schedule Cosine             | did you mean cosine?
train t.txt --tokenizer tiktoken          | did you mean bpe?
train t.txt --tokenizer character         | did you mean char?
train t.txt --preset qwen                 | did you mean modern?
train t.txt --preset gpt-2                | did you mean gpt2?
train t.txt --size small                  | did you mean cpu?
train t.txt --attention sdpa              | did you mean flash?
train t.txt --position rope               | did you mean rotary?
train t.txt --norm rms                    | did you mean rmsnorm?
train t.txt --val-split random            | did you mean spread?
train --data tinyshakespeare              | did you mean shakespeare?
"""


def lines(table):
    rows = [row.split("|", 1) for row in table.strip().splitlines()]
    return [pytest.param(line.strip(), answer.strip(), id=line.strip()) for line, answer in rows]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("Once upon a time there was a text. " * 40, encoding="utf-8")


@pytest.mark.usefixtures("here")
class TestCommandLines:
    @pytest.mark.parametrize(
        "line, answer", lines(NANOGPT) + lines(TRANSFORMERS) + lines(LLAMA_CPP) + lines(ANYBODY)
    )
    def test_another_name_leads_to_ours(self, line, answer, run):
        """One short line, exit code 2; every flag that it tells to use is one of the verb named
        beside it, or of the verb that was typed."""
        args = shlex.split(line)
        result = run(*args)
        assert_refused(result, 2, answer)
        assert len(result.lines[0]) <= 200
        advice = result.lines[0].split(": ", 2)[2]
        if found := re.search(
            r"(?:here it is|did you mean) --([a-z-]+)(\W.* a flag of (\w+))?", advice
        ):
            assert found[1] in flags(found[3] or args[0])

    @pytest.mark.parametrize("line, answer", lines(VALUES))
    def test_another_value_leads_to_ours(self, line, answer, run):
        assert_refused(run(*shlex.split(line)), 2, answer)
        assert not list(Path(".").glob("checkpoints/*"))  # no run is made

    def test_what_verbs_and_flags_there_are_decides(self, run):
        """Of several answers the one that this program has."""
        epochs = "--epochs 3" if "epochs" in flags("train") else "--max-steps N or --minutes M"
        assert_refused(run("train", "t.txt", "--num_train_epochs", "3"), 2, epochs)
        threads = "--threads 4" if "threads" in flags("generate") else "OMP_NUM_THREADS=4"
        assert_refused(run("generate", "x", "-t", "4"), 2, threads)
        listing = "here it is myllm runs" if "runs" in VERBS else "there are train"
        for verb in ("list", "ls", "ps"):
            assert_refused(run(verb), 2, listing)

    def test_a_file_with_such_a_name_is_a_text(self, run):
        """It is no longer than it is read that config/train_x.py is taken for nanoGPT's."""
        Path("config").mkdir()
        Path("config/train_x.py").write_text("x" * 50, encoding="utf-8")
        assert "TOML" not in run("train", "config/train_x.py", "--max-steps", "0").err

    def test_a_prompt_may_hold_anything(self, run):
        """lr=3 is a setting among paths only."""
        assert "lr" not in run("generate", "lr=3").err


class TestTables:
    def test_each_name_is_there_once(self):
        names = [name for row in foreign._FLAGS for name in row[0].split()]
        assert sorted(set(names)) == sorted(names)
        names = [name for names, _ in foreign._VERBS for name in names.split()]
        assert sorted(set(names)) == sorted(names)

    def test_every_flag_that_is_named_exists(self):
        """In some verb; those that follow the name of a verb in that one."""
        everywhere = {flag for verb in VERBS for flag in flags(verb)} | {"version", "help-all"}
        to_come = {"epochs", "threads"}
        texts = [text for row in foreign._FLAGS for text in row[1:]]
        texts += [text for _, text in foreign._VERBS if " " in text]
        for text in texts:
            assert set(re.findall(r"--([a-z][a-z-]*)", text)) <= everywhere | to_come, text
            for verb, flag in re.findall(r"myllm (\w+)(?: [A-Z]+)? --([a-z-]+)", text):
                assert flag in flags(verb), text

    def test_every_verb_that_is_named_exists(self):
        for _, text in foreign._VERBS:
            named = re.findall(r"myllm (\w+)", text) if " " in text else [text]
            assert set(named) <= {*VERBS, "runs"}, text

    @pytest.mark.parametrize("verb", VERBS)
    def test_any_name_with_any_verb_is_one_line(self, verb):
        """Short, and without a flag that the verb lacks."""
        for name in set(foreign.FLAGS) - flags(verb):
            line = str(about_option(VERBS, verb, UnknownOption(f"--{name}", "a value", verb)))
            assert len(line) <= 200 and "\n" not in line, line
            found = re.search(r"(?:here it is|did you mean) --([a-z-]+)(,)?", line)
            assert not found or found[2] or found[1] in flags(verb), line


@pytest.mark.parametrize("name, ours", [("n_embd", "d_model"), ("lr", "learning_rate")])
def test_settings_of_other_programs_in_python_and_toml(name, ours, here, run):
    """Under their names here, without flags."""
    with pytest.raises(ConfigError, match=f"unknown setting '{name}': did you mean {ours}?"):
        unknown: dict[str, Any] = {name: 3}
        myllm.train("t.txt", **unknown)
    Path("my.toml").write_text(f"{name} = 3\n", encoding="utf-8")
    assert_refused(run("train", "t.txt", "--config", "my.toml"), 2, name, f"did you mean {ours}?")


def flags(verb):
    """What can be typed behind -- with a verb."""
    found = [flag for flag in flags_of(VERBS[verb].options) if not flag.positional]
    return {f.flag for f in found} | {f"no-{f.flag}" for f in found if f.is_switch}


PAGE = Path(__file__).resolve().parents[1] / "docs" / "usage.md"
BEGIN, END = "<!-- names: begin -->", "<!-- names: end -->"
PROGRAMS = ("nanoGPT", "trainers on `transformers`", "llama.cpp, Ollama")
NAMES = """
max-steps | max_iters | | | train
d-model | n_embd | hidden_size | | train
n-layers | n_layer | num_hidden_layers | | train
n-heads | n_head | num_attention_heads | | train
context-length | block_size | max_seq_length | ctx-size | train
batch-size | | per_device_train_batch_size | | train
accumulation-steps | | gradient_accumulation_steps | | train
schedule | | lr_scheduler_type | | train
dtype | | bf16 | | train
eval-interval | | save_steps | | train
run | out_dir | output_dir | m | train,generate
max-new-tokens | | max_length | n-predict | generate
temperature | | | temp | generate
repetition-penalty | | | repeat-penalty | generate
sample-seed | seed | seed | seed | generate
"""


def names_table() -> str:
    """The table of docs/usage.md, each row as the program answers."""
    lines = [f"| {' | '.join((*PROGRAMS, 'here'))} |", "|---|---|---|---|"]
    for row in NAMES.strip().splitlines():
        ours, *theirs, verbs = (cell.strip() for cell in row.split("|"))
        for name in filter(None, theirs):
            typed = f"-{'-' * (len(name) > 1)}{name}"
            answers = [
                str(about_option(VERBS, verb, UnknownOption(typed, None, verb)))
                for verb in verbs.split(",")
                if name not in flags(verb)
            ]
            assert any(f"--{ours}" in answer for answer in answers), (typed, answers)
        cells = [f"`-{'-' * (len(n) > 1)}{n}`" if n else "" for n in theirs]
        if any(theirs):
            lines.append(f"| {' | '.join([*cells, f'`--{ours}`'])} |")
    lines.append("| `sample.py` | | `run` | `generate`, `write` |")
    return "\n".join(lines)


def test_the_page_on_usage_has_the_names():
    """`python tests/test_advice.py` writes it anew."""
    found = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert found == names_table()


def test_the_page_on_usage_has_every_verb():
    text = PAGE.read_text(encoding="utf-8").partition("## Train")[0]
    assert {verb for verb in VERBS if " " not in verb} - {"runs"} <= set(
        re.findall(r"`([a-z-]+)`", text)
    )


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{names_table()}\n{END}{after}", encoding="utf-8")
