"""Arguments of operators that TVM's converters don't read: refused where they matter."""

from torch import fx

from hwpq_tvm.errors import ImportModelError

# Where a tensor lies, which is always in the same way, and types, against which the results are checked.
_OF_STORAGE = {"device", "dtype", "layout", "memory_format", "non_blocking", "pin_memory"}

# What TVM's converters read, of arguments that are given by name.
_READ = {
    "addmm.default": {"alpha", "beta"},
    "baddbmm.default": {"alpha", "beta"},
    "bucketize.Tensor": {"right"},
    "gelu.default": {"approximate"},
    "meshgrid.indexing": {"indexing"},
    "round.decimals": {"decimals"},
    "var.correction": {"correction"},
}

# What they don't read, of arguments that are given by position.
_IGNORED = {
    "avg_pool2d.default": "divisor_override",
    "avg_pool3d.default": "divisor_override",
    "dropout.default": "train",
    "feature_dropout.default": "train",
    "native_dropout.default": "train",
}


def check_arguments(node: fx.Node, where: str) -> None:
    """Raise ImportModelError when TVM's converter of a node would ignore an argument that is given.

    Parameters
    ----------
    node
        What TVM converts, called as its schema says.
    where
        The operator and its module, for the message.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    name = getattr(node.target, "__name__", "")
    ignored = _IGNORED.get(name)
    for position, argument in enumerate(schema.arguments):
        given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        unread = argument.kwarg_only and argument.name not in _OF_STORAGE | _READ.get(name, set())
        if argument.name == ignored:
            unread = given is not None and given is not False
        if unread and given is not None and given != argument.default_value:
            raise ImportModelError(
                f"TVM's importer ignores {argument.name}={given} of {where}: expected"
                f" {argument.default_value if argument.name != 'train' else 'eval mode'}; leave it out in the model"
            )
