//! `pb.PassthroughOp`: an op that hands on some of its inputs, and needs all of them. Written down, not generated: the crate
//! that carries BuildKit's messages does not have it yet.

use proto::Message as _;

use crate::graph::Error;

/// Hands on some of its inputs as they are; the others must only be made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Passthrough {
    /// What made it necessary, for people.
    #[prost(string, tag = "1")]
    pub id: String,
    /// For each output the input that it is.
    #[prost(int64, repeated, tag = "2")]
    pub outputs: Vec<i64>,
}

/// The part of `pb.Op` that matters here.
#[derive(Clone, PartialEq, prost::Message)]
struct Op {
    #[prost(message, optional, tag = "8")]
    passthrough: Option<Passthrough>,
}

impl Passthrough {
    /// What an op's bytes say, if the op is one of these.
    pub(crate) fn read(bytes: &[u8], inputs: usize, index: usize) -> Result<Option<Passthrough>, Error> {
        let op = Op::decode(bytes).map_err(|source| Error::Decode { index, source })?;
        let Some(passthrough) = op.passthrough else { return Ok(None) };
        let is_input = |output: &i64| usize::try_from(*output).is_ok_and(|input| input < inputs);
        if passthrough.outputs.is_empty() || !passthrough.outputs.iter().all(is_input) {
            return Err(Error::BadPassthrough { index });
        }
        Ok(Some(passthrough))
    }
}
