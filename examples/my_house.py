from resd import Example, Outcome
from resd.tasks.lab import LabEnvironment

DRIVES = dict(zap="fan", yank="door", prod="heater", buzz="blind", flip="horn", whisk="valve")
ROOMS = ("hall", "attic", "cellar", "kitchen", "garage", "porch")


class House:  # commands look like `ahoy zap #hall 3 amen`; only this file knows
    templates = LabEnvironment.templates  # prompts for the lab's small model; others need none

    def examples(self, split):
        every = [(d, r, n) for n in range(1, 10) for d in DRIVES.values() for r in ROOMS]
        chosen = every[::7] if split == "test" else [e for i, e in enumerate(every) if i % 7]
        text = "set the {} in the {} to {}"
        return [Example(f"{e}", [{"role": "user", "content": text.format(*e)}], e) for e in chosen]

    def evaluate(self, example, response):
        (device, room, level), words = example.data, response.split()
        wrong, opens, moved = "", words[:1] == ["ahoy"], DRIVES.get("".join(words[1:2]))
        if not opens or words[-1] != "amen":
            wrong = "commands close with amen" if opens else "commands open with ahoy"
        elif len(words) != 5 or not moved:
            wrong = "the order is verb room level"
        elif words[2] != f"#{room}":
            wrong = "rooms are marked with #"
        elif moved != device:
            wrong = f"{words[1]} moved the {moved} in the {room}, wanted the {device}"
        elif words[3] != str(level):
            wrong = f"the {device} reached level {level % 9 + 1}, wanted {level}"
        return Outcome(reward=float(not wrong), passed=not wrong, feedback=wrong)
