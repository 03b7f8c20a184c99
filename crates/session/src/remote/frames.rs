//! Messages that carry nothing but bytes, as gRPC frames them, made and taken apart without copies of what they carry.
//!
//! On the wire a message is its length with four bytes behind a byte that says whether it is compressed; and a
//! `BytesMessage` is one field, number 1.

use bytes::{Buf as _, Bytes};
use futures_util::{Stream, StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tonic::Status;
use tonic::body::Body;

use super::MAX_MESSAGE;

/// gRPC's part of what stands before a message.
const PREFIX: usize = 5;
/// Field 1, whose value is its length and bytes.
const FIELD: u8 = 1 << 3 | 2;

/// The beginning of a message that carries so many bytes, with room for them: they are to be put behind it.
pub fn of_bytes(length: usize) -> Vec<u8> {
    let mut field = [0; 1 + 10];
    let mut count = 0;
    if length > 0 {
        field[0] = FIELD;
        count = 1;
        let mut rest = length;
        while rest >= 0x80 {
            field[count] = rest as u8 | 0x80;
            rest >>= 7;
            count += 1;
        }
        field[count] = rest as u8;
        count += 1;
    }
    let mut message = Vec::with_capacity(PREFIX + count + length);
    message.push(0);
    message.extend_from_slice(&((count + length) as u32).to_be_bytes());
    message.extend_from_slice(&field[..count]);
    message
}

/// A body of whole messages.
pub fn body(messages: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    Body::new(StreamBody::new(messages.map(|message| Ok::<_, Status>(Frame::data(message)))))
}

/// The same as an answer, which ends with a status.
pub fn answer(messages: impl Stream<Item = Bytes> + Send + 'static) -> http::Response<Body> {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let end = stream::once(async move { Ok::<_, Status>(Frame::trailers(trailers)) });
    let frames = messages.map(|message| Ok(Frame::data(message))).chain(end);
    let mut response = http::Response::new(Body::new(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}

/// The bytes that the messages of a body carry, in pieces as they come.
pub fn carried(body: Body) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
    stream::unfold(Some((body, Apart::default())), |state| async move {
        let (mut body, mut apart) = state?;
        loop {
            match apart.next() {
                Ok(Some(bytes)) => return Some((Ok(bytes), Some((body, apart)))),
                Ok(None) => {}
                Err(status) => return Some((Err(status), None)),
            }
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => apart.unread = data,
                    Err(frame) => match frame.trailers_ref().and_then(Status::from_header_map) {
                        Some(status) if status.code() != tonic::Code::Ok => return Some((Err(status), None)),
                        _ => {}
                    },
                },
                Some(Err(status)) => return Some((Err(status), None)),
                None if apart.is_between() => return None,
                None => return Some((Err(Status::internal("an end inside of a message")), None)),
            }
        }
    })
}

/// Takes messages apart.
#[derive(Default)]
struct Apart {
    unread: Bytes,
    /// What stands before the bytes, as far as it came.
    head: Vec<u8>,
    /// How many bytes of the message are still to come.
    left: usize,
}

impl Apart {
    fn is_between(&self) -> bool {
        self.head.is_empty() && self.left == 0
    }

    /// The next bytes of what came.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        while !self.unread.is_empty() {
            if self.left > 0 {
                let bytes = self.unread.split_to(self.left.min(self.unread.len()));
                self.left -= bytes.len();
                return Ok(Some(bytes));
            }
            self.head.push(self.unread.get_u8());
            if let Some(length) = carries(&self.head)? {
                self.head.clear();
                self.left = length;
            }
        }
        Ok(None)
    }
}

/// How many bytes a message carries, when enough of its beginning came.
fn carries(head: &[u8]) -> Result<Option<usize>, Status> {
    let Some((prefix, field)) = head.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 {
        return Err(Status::unimplemented("compressed messages are not supported here"));
    }
    if length > MAX_MESSAGE {
        return Err(Status::out_of_range(format!("a message of {length} bytes; {MAX_MESSAGE} are the limit")));
    }
    if length == 0 {
        return Ok(Some(0));
    }
    let Some((tag, varint)) = field.split_first() else { return Ok(None) };
    let malformed = || Status::internal("a message that is not bytes alone");
    if *tag != FIELD {
        return Err(malformed());
    }
    if varint.last().is_none_or(|byte| byte & 0x80 != 0) {
        return if varint.len() < 10 { Ok(None) } else { Err(malformed()) };
    }
    let value = varint.iter().rev().try_fold(0usize, |value, byte| {
        value.checked_mul(0x80).map(|value| value | usize::from(byte & 0x7f)).ok_or_else(malformed)
    })?;
    let is_whole = value.checked_add(1 + varint.len()) == Some(length);
    if is_whole { Ok(Some(value)) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use proto::Message as _;
    use proto::moby::buildkit::v1::BytesMessage;

    use super::*;

    fn framed(data: &[u8]) -> Vec<u8> {
        let mut message = of_bytes(data.len());
        message.extend_from_slice(data);
        message
    }

    #[test]
    fn messages_are_those_of_the_generated_code() {
        for length in [0, 1, 127, 128, 300, 20_000, 1 << 20] {
            let data = vec![7; length];
            let encoded = BytesMessage { data: data.clone() }.encode_to_vec();
            let message = framed(&data);
            assert_eq!(message[..PREFIX], [&[0][..], &(encoded.len() as u32).to_be_bytes()].concat());
            assert!(message[PREFIX..] == encoded, "{length}");
        }
    }

    #[test]
    fn pieces_may_end_anywhere() {
        let wire = [framed(b"one"), framed(b""), framed(&[9; 300]), framed(b"end")].concat();
        for size in 1..wire.len() {
            let (mut apart, mut got) = (Apart::default(), Vec::new());
            for piece in wire.chunks(size) {
                apart.unread = Bytes::copy_from_slice(piece);
                while let Some(bytes) = apart.next().expect("good") {
                    got.extend_from_slice(&bytes);
                }
            }
            assert!(apart.is_between());
            assert_eq!(got, [&b"one"[..], &[9; 300], b"end"].concat(), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_message_of_bytes_is_refused() {
        let with = |prefix: [u8; 5], rest: &[u8]| [&prefix[..], rest].concat();
        for (wire, says) in [
            (with([1, 0, 0, 0, 3], b"\x0a\x01x"), "compressed"),
            (with([0, 0xff, 0, 0, 0], b""), "limit"),
            (with([0, 0, 0, 0, 3], b"\x12\x01x"), "bytes alone"),
            (with([0, 0, 0, 0, 4], b"\x0a\x01x"), "bytes alone"),
            (with([0, 0, 0, 0, 2], b"\x0a\x01"), "bytes alone"),
            (with([0, 0, 0, 0, 12], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "bytes alone"),
        ] {
            let mut apart = Apart { unread: wire.clone().into(), ..Apart::default() };
            let status = apart.next().expect_err("refused");
            assert!(status.message().contains(says), "{wire:?}: {status}");
        }
    }
}
