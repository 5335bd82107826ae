"""RESD in one file: Algorithm 1 of the paper (arXiv 2605.12741) on resd's public API.

    python examples/resd_minimal.py [SEED]

Trains the lab's base model on a private command language for 40 steps of 16 rollouts. It leaves
out what a real run needs and `resd train` has: checkpoints, resume, budgets, counters, a view.
"""

import random
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from resd.context import (
    Playbook,
    PlaybookConfig,
    Reflection,
    SolutionBuffer,
    Templates,
    parse_curation,
    parse_reflection,
)
from resd.distill import divergence_per_token, importance_weights, make_teacher
from resd.engines import HFEngine, Request, Sampling
from resd.models.batch import align, response_logits
from resd.models.chat import ChatFormat
from resd.models.load import LAB_MODEL
from resd.runs.seeds import derive
from resd.tasks.lab import LabEnvironment

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 0
STEPS, BATCH, INNER, UPDATES, LR = 40, 16, 4, 3, 1e-3

torch.set_num_threads(1)  # threads hurt a model of a million parameters
environment = LabEnvironment(dialect=SEED)
tokenizer = AutoTokenizer.from_pretrained(LAB_MODEL)
student = AutoModelForCausalLM.from_pretrained(LAB_MODEL, dtype=torch.float32)
teacher = make_teacher("frozen", student)
engine = HFEngine(student, tokenizer, batch_size=256, max_context=1024)
optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0)
chat, pad = ChatFormat(tokenizer), tokenizer.pad_token_id
templates = Templates([environment.templates])
playbook = Playbook(PlaybookConfig(admission="confirmed", max_entries=40))
solutions = SolutionBuffer()


def ask(name, **sections):
    """Token ids of a prompt made from a template."""
    return chat.encode([{"role": "user", "content": templates.render(name, **sections)}])


def generate(prompts, sampling, *purpose):
    """A completion for each prompt, each with a seed of its own."""
    seeds = [derive(SEED, *purpose, i) for i in range(len(prompts))]
    pairs = zip(prompts, seeds, strict=True)
    return engine.generate([Request(tuple(prompt), sampling, seed) for prompt, seed in pairs])


def write(prompts, tokens=64):
    """What the model writes for some prompts, greedily."""
    return [c.text for c in generate(prompts, Sampling(0.0, 1.0, tokens))]


def roll_out(examples, step):
    """Line 1 and 2: one response for each prompt by the plain student, and its evaluation."""
    prompts = [chat.encode(example.prompt) for example in examples]
    completions = generate(prompts, Sampling(1.0, 0.95, 24), "rollout", step)
    return [
        (example, prompt, completion, environment.evaluate(example, completion.text))
        for example, prompt, completion in zip(examples, prompts, completions, strict=True)
    ]


def learn(batch):
    """Line 3: CONCISE, REFLECT and tag, cache successes, CURATE; returns the reflections."""
    playbook.begin_update()
    failures = [i for i, (*_, outcome) in enumerate(batch) if not outcome.passed]
    question = {i: batch[i][0].prompt[-1]["content"] for i in failures}
    snapshot = playbook.all()
    prompts = [
        ask(
            "reflect",
            question=question[i],
            playbook=snapshot,
            trial=batch[i][2].text,
            feedback=batch[i][3].feedback,
        )
        for i in failures
    ]
    reflections = dict(zip(failures, map(parse_reflection, write(prompts)), strict=True))
    for i, reflection in reflections.items():
        playbook.tag(reflection.tags, evidence(batch[i]))
    for example, _, completion, outcome in batch:
        if outcome.passed:
            solutions.add(example.id, completion.text)
    snapshot = playbook.all()
    prompts = [
        ask("curate", question=question[i], playbook=snapshot, reflection=reflections[i])
        for i in failures
    ]
    curations = map(parse_curation, write(prompts, 48))
    playbook.apply(
        (evidence(batch[i]), curation.operations)
        for i, curation in zip(failures, curations, strict=True)
    )
    return reflections


def evidence(rollout):
    """The same response to the same example is the same evidence."""
    return f"{rollout[0].id}/{rollout[2].text}"


def teacher_prompt(i, rollout, reflections):
    """Line 4: playbook, trial, feedback, reflection and solution; what is empty is left out."""
    example, _, completion, outcome = rollout
    solution = solutions.get(example.id) or ""
    failed = not outcome.passed
    return ask(
        "teacher",
        question=example.prompt[-1]["content"],
        playbook=playbook.shown(),
        trial=completion.text if failed else "",
        feedback=outcome.feedback,
        reflection=reflections.get(i, Reflection()),
        solution=solution,
    )


def distill(batch, reflections, number):
    """Line 5: match the teacher's distribution over the student's own response (Eq. 1)."""
    prompts = [prompt for _, prompt, _, _ in batch]
    privileged = [teacher_prompt(i, rollout, reflections) for i, rollout in enumerate(batch)]
    texts = [completion.token_ids for _, _, completion, _ in batch]
    with teacher.model() as model:
        wanted = response_logits(model, privileged, texts, pad)
    responses = align(texts, pad, student.device)
    mask, before = responses.mask, None
    for _ in range(UPDATES):
        number += 1
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, number / 5)
        logits = response_logits(student, prompts, texts, pad)
        now = logits.log_softmax(-1).gather(-1, responses.token_ids[..., None])[..., 0].detach()
        before = now if before is None else before
        loss = torch.zeros_like(now)
        loss[mask] = divergence_per_token(
            logits[mask], wanted[mask], alpha=0.0, top_k=100, ratio_min=0.2
        )
        loss = loss * importance_weights(now, before)
        (loss.sum(-1) / mask.sum(-1)).mean().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(dict(student.named_parameters()))  # line 6
    return number


def accuracy(examples):
    """mean@4 of the student without any context."""
    prompts = [chat.encode(example.prompt) for example in examples for _ in range(4)]
    answers = generate(prompts, Sampling(0.6, 0.95, 24), "evaluation")
    passed = [
        environment.evaluate(examples[i // 4], answer.text).passed
        for i, answer in enumerate(answers)
    ]
    return sum(passed) / len(passed)


def main():
    train, test = environment.examples("train"), environment.examples("test")[:64]
    order = random.Random(SEED).sample(range(len(train)), len(train))
    number = 0
    for step in range(STEPS):
        if step % 10 == 0:
            print(f"step {step:2}  mean@4 {accuracy(test):.3f}", flush=True)
        start = step // INNER * BATCH
        batch = roll_out([train[i] for i in order[start : start + BATCH]], step)
        reflections = learn(batch)
        number = distill(batch, reflections, number)
    print(f"step {STEPS}  mean@4 {accuracy(test):.3f}")
    score = environment.score_playbook(entry.content for entry in playbook.shown())
    print(f"playbook: precision {score['precision']:.2f}, recall {score['recall']:.2f}")
    print("\n".join(entry.render() for entry in playbook.shown()))


if __name__ == "__main__":
    main()
