"""Messages of a log that are put together by hand are, to the byte, those that protobuf makes."""

from hypothesis import given
from hypothesis import strategies as st

from fastlane_grpc.api import converters
from fastlane_grpc.api.log_encoding import ProtobufEncoding
from fastlane_grpc.logs import Cursor, Message, TextChunk
from fastlane_grpc.model import Cause, Source, new_id
from fastlane_grpc.record import Chunk, Gap
from fastlane_grpc.v1 import fastlane_pb2 as pb

EXECUTION_ID = new_id()

# Around each length of a varint, up to the largest number of a record.
numbers = st.one_of(
    st.integers(0, 1 << 62),
    st.sampled_from([edge + by for bits in range(7, 63, 7) for edge in [1 << bits] for by in (-1, 0)]),
)
chunks = st.builds(Chunk, st.sampled_from(Source), numbers, numbers, st.binary(min_size=1, max_size=300), numbers)
texts = st.builds(TextChunk, st.sampled_from(Source), numbers, numbers, st.text(max_size=100), numbers)
cursors = st.builds(Cursor, st.just(EXECUTION_ID), *[st.integers(0, 10**18 - 1)] * 4)


def by_protobuf(message: Message) -> bytes:
    """The same by protobuf's own means."""
    answer = pb.StreamExecutionLogsResponse(cursor=str(message.cursor))
    if message.gap:
        answer.gap.CopyFrom(converters.gap(message.gap))
    for chunk in message.chunks:
        added = answer.chunks.add(
            source=pb.Source.ValueType(chunk.source), offset=chunk.offset, sequence=chunk.sequence
        )
        # Set, though perhaps to 1970: it is there.
        added.time.SetInParent()
        added.time.seconds, added.time.nanos = divmod(chunk.time_ns, 1_000_000_000)
        if isinstance(chunk, TextChunk):
            added.text = chunk.text
        else:
            added.data = chunk.data
    return answer.SerializeToString()


@given(cursors, st.lists(chunks | texts, max_size=20))
def test_chunks_are_encoded_as_protobuf_encodes_them(cursor: Cursor, content: list[Chunk | TextChunk]) -> None:
    message = Message(cursor, content)
    assert ProtobufEncoding().message(message) == by_protobuf(message)


@given(
    cursors,
    st.builds(Gap, st.sampled_from(Source), numbers, st.none() | numbers, st.sampled_from(Cause), numbers, numbers),
)
def test_a_gap_is_encoded_as_protobuf_encodes_it(cursor: Cursor, gap: Gap) -> None:
    message = Message(cursor, gap=gap)
    assert ProtobufEncoding().message(message) == by_protobuf(message)


def test_a_chunk_of_a_whole_block_is_encoded_as_protobuf_encodes_it() -> None:
    message = Message(
        Cursor(EXECUTION_ID, stdout=65_352), [Chunk(Source.STDOUT, 0, 1_764_320_000_123_456_789, bytes(65_352), 1)] * 4
    )
    assert ProtobufEncoding().message(message) == by_protobuf(message)
