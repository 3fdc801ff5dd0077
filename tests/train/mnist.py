"""A recipe of MNIST by the smallest transformer of two heads, which takes milliseconds a step."""

SUPERVISED = dict(
    data=dict(name="mnist5k", split="train", batch_size=16),
    views=dict(image=dict(ops=(dict(name="normalize", mean=0.13, std=0.31),))),
    networks=dict(
        encoder=dict(name="vit", variant="mu/7", width=16, depth=1, heads=2, mlp_dim=24, pooling="mean"),
        head=dict(name="linear_head", num_classes=10),
    ),
    objective=dict(name="supervised"),
    optimizer=dict(name="adamw"),
    schedule=dict(name="constant", base=1e-2),
)
