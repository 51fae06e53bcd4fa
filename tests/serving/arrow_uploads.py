"""Arrow streams made in memory."""

import pyarrow as pa


def stream(table, **options):
    """The bytes of an Arrow IPC stream."""
    file = pa.BufferOutputStream()
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue().to_pybytes()


def lists(array, fixed=True):
    """Objects along the first axis as lists of lists, of fixed or of any size."""
    found = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        if fixed:
            found = pa.FixedSizeListArray.from_arrays(found, size)
        else:
            found = pa.ListArray.from_arrays(pa.array(range(0, len(found) + 1, size), pa.int32()), found)
    return found


def image_table(observation, fixed=True, metadata=None, **columns):
    """A table of an ImageObservation's flux, and other columns."""
    return pa.table(
        {"flux": lists(observation.flux.numpy(), fixed), **columns},
        metadata={"modality": "image/hsc", "bands": "g,r", **(metadata or {})},
    )
