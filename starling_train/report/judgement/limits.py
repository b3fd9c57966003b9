"""The limits of the page's judgement: one table, shown on every page and in docs/report.md."""

from dataclasses import dataclass

BAD, WATCH, NOTE, GOOD = "bad", "watch", "note", "good"
SEVERITY = (BAD, WATCH, NOTE, GOOD)  # in the order in which a page shows them

# Percentage points of a skill that a run may lose
POINTS_ALLOWED = 3.0
# Steps before which a critic is not judged
CRITIC_STEPS = 10
# Answers, and words of an answer, below which repetition is not judged
FEWEST_ANSWERS = 6
FEWEST_WORDS = 11


@dataclass(frozen=True)
class Limit:
    """One number that is judged, and from where on it is not good.

    name: what a verdict begins with.
    of: what is measured, with its unit.
    watch, bad: beyond these values it is worth a look, and bad.
    reason: why there.
    advice: what to do.
    is_floor: values below the limits are beyond them, not values above.
    """

    name: str
    of: str
    watch: float
    bad: float
    reason: str
    advice: str
    is_floor: bool = False

    def state(self, value: float) -> str:
        """Return `good`, `watch` or `bad`."""
        sign = -1 if self.is_floor else 1
        if sign * value > sign * self.bad:
            return BAD
        return WATCH if sign * value > sign * self.watch else GOOD


LIMITS = {
    "kl": Limit(
        "KL to the reference",
        "KL to the starting policy, in nats a response: the largest of the mean of the last quarter of the steps, the "
        "last step and the last held-out value; worth a look if it was ever beyond what is bad",
        25.0,
        50.0,
        "Choosing the best of n answers costs log n - 1 + 1/n nats: 6 nats, the target of Ziegler et al. (2019), are "
        "the best of 1,000; 25 the best of 10^11. That far from the answers it was trained on a reward model says "
        "little. The toy at 220 nats had lost 59 points of function calling.",
        "Raise algorithm.kl.coefficient, set algorithm.kl.target (6 is Ziegler's), or lower optim.learning_rate; "
        "export an earlier checkpoint.",
    ),
    "kl_target": Limit(
        "KL against its target",
        "the same KL, as a multiple of algorithm.kl.target",
        2.0,
        5.0,
        "The controller raises the coefficient by at most 20 % over algorithm.kl.horizon responses: twice the target "
        "means that it cannot keep up.",
        "Start with a larger algorithm.kl.coefficient, shorten algorithm.kl.horizon, or lower optim.learning_rate.",
    ),
    "kl_negative": Limit(
        "Negative KL",
        "the same KL, in nats a response",
        -0.05,
        -0.25,
        "The mean of log-ratios of answers drawn from the policy itself is never below 0, but for noise.",
        "Answers are not drawn from the distribution that is trained: look at rollout.temperature, top_p, top_k and at "
        "policy/ratio_first.",
        is_floor=True,
    ),
    "entropy": Limit(
        "Entropy",
        "entropy of a token in the last quarter of the steps, as a share of its value in the first steps",
        0.5,
        0.2,
        "How much a policy varies depends on the model, so it counts against the start. At a fifth the answers to a "
        "prompt are nearly the same, and there is nothing left to compare.",
        "Raise algorithm.kl.coefficient or rollout.temperature, lower optim.learning_rate, train fewer steps.",
        is_floor=True,
    ),
    "entropy_floor": Limit(
        "Entropy",
        "entropy of a token in the last quarter of the steps, in nats",
        0.05,
        0.01,
        "exp(0.05) = 1.05 choices a token, exp(0.01) = 1.01: the policy says one thing.",
        "Raise algorithm.kl.coefficient or rollout.temperature, lower optim.learning_rate, train fewer steps.",
        is_floor=True,
    ),
    "entropy_rise": Limit(
        "Rising entropy",
        "entropy of a token in the last quarter of the steps, as a multiple of its value in the first steps",
        1.5,
        3.0,
        "A reward sharpens a policy. Entropy that grows by half or more means that what the model knew is coming "
        "apart, or that noise is learned.",
        "Lower optim.learning_rate and look at the answers.",
    ),
    "clip": Limit(
        "Clip fraction",
        "share of tokens whose ratio is clipped, in the last quarter of the steps",
        0.3,
        0.5,
        "A clipped token gives no gradient (Schulman et al. 2017, equation 7). A few percent are usual; at half of "
        "them most of a step's work is thrown away, and the policy jumps.",
        "Lower optim.learning_rate, algorithm.epochs or algorithm.minibatches.",
    ),
    "critic": Limit(
        "Critic",
        f"explained variance of the returns in the last quarter of at least {CRITIC_STEPS} steps",
        0.2,
        0.05,
        "0 is what a constant explains; below 0.05 a critic cannot be told from one, and advantages are mostly noise.",
        "Raise optim.critic_learning_rate, give it algorithm.critic_warmup_steps, take algorithm.critic=twin, or train "
        "longer.",
        is_floor=True,
    ),
    "ratio_float32": Limit(
        "Agreement of rollout and training",
        "largest |ratio - 1| in a step's first micro-batch, float32",
        1e-4,
        1e-2,
        "The weights are the same, so only rounding differs.",
        "Rollout and training do not see the same distribution: look at rollout.engine, temperature and stop strings.",
    ),
    "ratio_half": Limit(
        "Agreement of rollout and training",
        "largest |ratio - 1| in a step's first micro-batch, 16-bit types",
        0.1,
        0.5,
        "On a CPU packed passes over the same weights give the same bits. On a GPU the last bit of a product may "
        "depend on the size of the micro-batch, and in bfloat16 that can grow to percents of a probability.",
        "Rollout and training do not see the same distribution: look at rollout.engine, temperature and stop strings.",
    ),
    "gap_float32": Limit(
        "Agreement of engines",
        "mean |log-probability of the rollout engine - training's| over a step's tokens, nats, float32",
        1e-3,
        0.1,
        "The engine has a copy of the same weights, so only rounding differs.",
        "The engine's copy of the weights is not the policy's: use rollout.engine=slots, and report it.",
    ),
    "gap_half": Limit(
        "Agreement of engines",
        "mean |log-probability of the rollout engine - training's| over a step's tokens, nats, 16-bit types",
        0.1,
        0.3,
        "Kernels of other shapes round otherwise, by a few hundredths of a nat in bfloat16. What is learned is a "
        "little off the distribution that answered.",
        "Set rollout.correction=2 (truncated importance weights), or use rollout.engine=slots.",
    ),
    "truncation": Limit(
        "Truncation",
        "share of answers that run into the token limit",
        0.2,
        0.5,
        "A cut answer is scored without its end, and algorithm.missing_eos_penalty then pays for stopping early "
        "rather than for answering well.",
        "Raise rollout.max_new_tokens; if that is not possible, lower algorithm.missing_eos_penalty.",
    ),
    "empty": Limit(
        "Empty answers",
        "share of answers without any text",
        0.01,
        0.05,
        "Nobody asks for an empty answer: one in a hundred is no accident. Reward models have seldom seen any, and may "
        "like them: on a real model 5 of 16 answers became empty, with scores above the mean.",
        "Set rollout.min_new_tokens, or reward.empty_response; look at what the reward model gives to an empty answer "
        "(reward/probe_empty); lower algorithm.missing_eos_penalty, or raise rollout.max_new_tokens.",
    ),
    "repeat_within": Limit(
        "Repetition within answers",
        f"share of an answer's 4-grams of words that it has had before, mean over answers of {FEWEST_WORDS} words or "
        "more",
        0.15,
        0.4,
        "Welleck et al. (2020) count below 0.01 in people's texts and 0.4 in those of a GPT-2 that loops.",
        "Read the answers below; lower optim.learning_rate, raise algorithm.kl.coefficient, or put a penalty on "
        "repetition into the reward.",
    ),
    "repeat_across": Limit(
        "Repetition across answers",
        "share of answers to different prompts that have a closing sentence, an opening sentence, five words in a row, "
        "or everything in common",
        0.3,
        0.5,
        "Different questions have different answers. What half of them share does not answer any: the reward model "
        "likes it, that is all.",
        "Read the answers below: what they share is worth more to the reward model than what they say. Raise "
        "algorithm.kl.coefficient, or score with a function that takes it away (reward=function).",
    ),
    "length": Limit(
        "Length with reward",
        "mean length of answers, last over first or first over last, where the score rose too",
        1.5,
        2.0,
        "Reward models favour length (Singhal et al. 2023 trace most of a gain in score to it); at twice the length "
        "the score does not say whether the answers are better.",
        "Set algorithm.length_penalty, compare answers of equal length, or measure the true quality "
        "(evaluation.functions).",
    ),
    "score": Limit(
        "Held-out score",
        "gain of the held-out score, in standard deviations of the starting policy's scores; its 95 % interval must "
        "be above 0",
        0.5,
        0.0,
        "At half a deviation two of three answers are better than before; less is hard to see in the answers.",
        "Train longer, raise optim.learning_rate, train more (freeze.top_percent), or lower algorithm.kl.coefficient.",
        is_floor=True,
    ),
    "generalisation": Limit(
        "Training against held-out score",
        "gain of the held-out score, as a share of the gain on training prompts, where that is at least half a "
        "standard deviation",
        0.5,
        0.1,
        "What is learned from prompts must hold for others; what does not is memorised.",
        "Use more prompts (data.path), fewer steps, or a larger algorithm.kl.coefficient.",
        is_floor=True,
    ),
    "gold": Limit(
        "True quality",
        "change of the gold score on held-out prompts; good where its 95 % interval is above 0, bad where it is below",
        0.0,
        0.0,
        "The score is an estimate. If what it estimates falls while it rises, the policy exploits the reward model.",
        "Export an earlier checkpoint; raise algorithm.kl.coefficient; improve the reward model on such answers.",
        is_floor=True,
    ),
    "skill": Limit(
        "Skill",
        "percentage points of right answers that were lost; bad where the 95 % interval of the change is below 0, "
        "worth a look where chance may explain it",
        POINTS_ALLOWED,
        POINTS_ALLOWED,
        f"{POINTS_ALLOWED:g} points are what a run may pay. A hundred cases tell 6 points "
        "apart, so the interval belongs to the number (Agresti and Caffo 2000).",
        "Export an earlier checkpoint, train fewer matrices (freeze.top_percent), raise algorithm.kl.coefficient, or "
        "evaluate more often.",
    ),
    "guard": Limit(
        "Guard",
        "guarded skills that are lost in the model that the run gives: at its last evaluation, or at the one that it "
        "went back to (guard.then=stop, anchor); worth a look if one was lost at any other",
        0.0,
        0.0,
        "Lost is what falls further than guard.skills allows, by more than chance: the whole 95 % interval of the "
        "fall, case by case, is above it (Agresti and Min 2005).",
        "Lower optim.learning_rate, train fewer matrices (freeze.top_percent), raise algorithm.kl.coefficient or "
        "guard.most, or evaluate more often (evaluation.every).",
    ),
    "perplexity": Limit(
        "Perplexity of other text",
        "last over first",
        1.05,
        1.25,
        "5 % is what a change of data type or quantisation does; a quarter more means that language was forgotten.",
        "Train fewer matrices, raise algorithm.kl.coefficient, or lower optim.learning_rate.",
    ),
    "ranking": Limit(
        "Held-out pairs",
        "share of held-out pairs in the right order, at the end",
        0.55,
        0.5,
        "A coin gives 0.5. Starling's published reward models have 0.71 to 0.81.",
        "Train longer or on more rows, and see whether training pairs come out right.",
        is_floor=True,
    ),
    "memorised": Limit(
        "Training against held-out pairs",
        "pairs in the right order, training (last quarter of the steps) minus held-out",
        0.1,
        0.25,
        "Pairs that come out right in training alone are memorised.",
        "Use more rows, fewer epochs, a lower optim.learning_rate, or fewer matrices.",
    ),
    "displaced": Limit(
        "Better answers become unlikely",
        "fall of the better answers' log-probability times beta (eval/chosen_reward below 0), as a multiple of the "
        "margin",
        1.0,
        3.0,
        "The margin may grow because both answers become unlikely; then the policy moves to answers nobody ranked.",
        "Lower optim.learning_rate or the number of epochs, raise dpo.beta, or take dpo.loss=ipo.",
    ),
    "skipped": Limit(
        "Skipped updates",
        "updates left out because a number was not finite, a step",
        0.0,
        0.05,
        "One is an accident; many are a fault of the data or of the learning rate.",
        "Look at skipped.jsonl; lower optim.learning_rate.",
    ),
    "left_out": Limit(
        "Answers left out",
        "share of answers without a finite score or log-probability",
        0.0,
        0.01,
        "One is an accident; one in a hundred is a fault of the reward model or of the precision.",
        "Look at skipped.jsonl.",
    ),
}

# What a number beyond its limits is called, in the verdict at the top of a page
FAULTS = {
    "kl": "far from the reference (KL)",
    "kl_target": "KL beyond its target",
    "kl_negative": "negative KL",
    "entropy": "entropy collapse",
    "entropy_floor": "entropy collapse",
    "entropy_rise": "rising entropy",
    "clip": "ratios clipped",
    "critic": "dead critic",
    "ratio_float32": "rollout and training disagree",
    "ratio_half": "rollout and training disagree",
    "gap_float32": "rollout and training disagree",
    "gap_half": "rollout and training disagree",
    "truncation": "truncated answers",
    "empty": "empty answers",
    "repeat_within": "answers that repeat themselves",
    "repeat_across": "answers with the same text",
    "length": "length with reward (length hacking)",
    "score": "held-out score",
    "generalisation": "better on training prompts only",
    "gold": "true quality",
    "skill": "lost",
    "guard": "a guarded skill was lost",
    "perplexity": "perplexity of other text",
    "ranking": "held-out pairs",
    "memorised": "memorised pairs",
    "displaced": "better answers become unlikely",
    "skipped": "skipped updates",
    "left_out": "answers left out",
}
