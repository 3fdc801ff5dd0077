"""Plans recipes at full size on a slice like their papers' machines, and writes the table of docs/plan.md.

    python scripts/bench/plan_table.py [--rows=plan_rows.jsonl] [RECIPE ...]

Each recipe is planned in a process of its own, by `vfm plan`'s functions, and adds a line to ROWS; what stands there
is not done again. Without names all of RECIPES. Needs the extra `plan`; one recipe takes minutes on two cores.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = {  # and a slice of about the chips that the paper used
    "supervised/vit_s16_in1k.py": "v5e:2x4",
    "masked/mae_vit_b16_in1k.py": "v5e:8x8",
    "self_distillation/dino_vit_s16_in1k.py": "v5e:4x4",
    "contrastive/simclr_r50_in1k.py": "v5e:8x8",
    "image_text/siglip_vit.py": "v5e:16x16",
    "self_distillation/ibot_vit_b16_in1k.py": "v5e:4x8",
    "masked/ijepa_vit_h14_in1k.py": "v5p:2x2x4",
    "self_distillation/dinov2_vit_l16_in1k.py": "v5p:2x4x4",
    "contrastive/moco_v3_vit_in1k.py": "v5e:8x8",
    "self_distillation/dinov2_vit_g14_lvd142m.py": "v5p:4x4x8",
    "masked/simmim_swin_b_in1k.py": "v5e:4x8",
    "self_distillation/dinov3_vit_7b16_lvd1689m.py": "v5p:4x8x8",
    "autoregressive/aim_0_6b.py": "v5p:4x4x4",
    "image_text/clip_vit.py": "v5e:16x16",
    "supervised/deit3_in1k.py": "v5e:4x8",
    "supervised/augreg_in21k.py": "v5e:4x8",
    "self_distillation/dino_vit_b16_in1k.py": "v5e:4x8",
    "self_distillation/byol_r50_in1k.py": "v5e:16x16",
    "self_distillation/simsiam_r50_in1k.py": "v5e:2x4",
    "self_distillation/swav_r50_in1k.py": "v5e:8x8",
    "redundancy/barlow_twins_r50_in1k.py": "v5e:4x8",
    "redundancy/vicreg_r50_in1k.py": "v5e:4x8",
    "redundancy/lejepa_vit_l14_in1k.py": "v5p:2x2x4",
    "masked/simmim_vit_b16_in1k.py": "v5e:4x8",
    "masked/data2vec2_vit_b16_in1k.py": "v5e:4x4",
    "masked/fcmae_convnextv2_b_in1k.py": "v5e:8x8",
    "autoregressive/nepa_vit_b14_in1k.py": "v5e:8x8",
    "supervised/vit_b16_scenic_in1k.py": "v5e:4x8",
    "supervised/vit_g14_jft3b.py": "v5p:8x8x8",
    "supervised/bit_r50x1.py": "v5e:4x4",
    "contrastive/supcon_r50_in1k.py": "v5e:4x8",
    "contrastive/moco_v2_r50_in1k.py": "v5e:2x4",
    "contrastive/moco_v3_r50_in1k.py": "v5e:4x8",
    "combined/mae_simclr_vit_b16_in1k.py": "v5e:8x8",
    "image_text/openclip_vit.py": "v5e:16x16",
    "image_text/siglit_vit.py": "v5e:4x4",
    "supervised/vit_mae_scratch_in1k.py": "v5e:8x8",
    "self_distillation/ibot_vit_s16_in1k.py": "v5e:4x4",
    "self_distillation/dino_r50_in1k.py": "v5e:4x8",
    "self_distillation/dinov3_vit_l16_in1k.py": "v5p:2x4x4",
}
EXAMPLES = 100_000_000  # of data sets whose size is not known here


def plan_one(recipe: str, on: str) -> None:
    """Prints a JSON line for each stage."""
    from vfm_jax.cli import load_recipe, override
    from vfm_jax.core.errors import UserError
    from vfm_jax.plan import find_target, plan

    target = find_target(on)
    loaded = override(load_recipe(str(ROOT / "configs" / recipe)), (), recipe)
    try:
        planned = list(plan(loaded, target))
    except UserError as error:
        if "--examples" not in str(error):
            raise
        planned = list(plan(loaded, target, EXAMPLES))
    for one in planned:
        p = one.plan
        row = {
            "recipe": recipe,
            "on": on,
            "stage": p.stage,
            "parameters": p.num_parameters,
            "batch": p.batch_size,
            "fits": p.fits,
            "peak": p.peak_bytes,
            "memory": p.memory_bytes,
            "compile": p.compile_seconds,
            "traffic": p.traffic_bytes,
            "best": p.time and p.time.best,
            "worst": p.time and p.time.worst,
            "limit": p.time and p.time.limit,
            "mfu": p.mfu,
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="plan_rows.jsonl")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("recipes", nargs="*")
    args = parser.parse_args()
    if args.one:
        plan_one(args.one, RECIPES[args.one])
        return
    path = pathlib.Path(args.rows)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for recipe in args.recipes or RECIPES:
        if any(row["recipe"] == recipe for row in known):
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--one", recipe], capture_output=True, text=True, cwd=ROOT, check=False
        )
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["?"])[-1]
            rows = [{"recipe": recipe, "on": RECIPES[recipe], "error": last[:300]}]
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        known += rows
    print(table(known))


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| recipe, stage | slice | parameters | batch | peak of a chip | fits | compiles in | a step | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['recipe']} | {row['on']} | | | | | not planned: {row['error']} | | |")
            continue
        step = mfu = ""
        if row["best"]:
            step = f"{1e3 * row['best']:.0f} to {1e3 * row['worst']:.0f} ms, {row['limit']}"
            mfu = f"{row['mfu'][0]:.0%} to {row['mfu'][1]:.0%}"
        name = row["recipe"] + ("" if row["stage"] == "train" else f", {row['stage']}")
        peak = f"{row['peak'] / 1e9:.1f} of {row['memory'] / 1e9:.1f} GB"
        fits = "yes" if row["fits"] else "**no**"
        lines.append(
            f"| {name} | {row['on']} | {row['parameters'] / 1e6:.0f} M | {row['batch']:,} | {peak} | {fits} | "
            f"{row['compile']:.0f} s | {step} | {mfu} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
