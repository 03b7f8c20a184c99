//! `moby.buildkit.v1.SolveRequest` with fields 16 and 17, which the crate with the other messages does not have yet: without
//! them what a client asks for there would be ignored. So it would be with limits of steps in the definitions and a
//! frontend's inputs of this message and of `moby.buildkit.v1.frontend.SolveRequest`.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::{SolveRequest, frontend};
use bollard_buildkit_proto::pb::Definition;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// The method that takes it.
pub const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";

/// The method of frontends that takes theirs.
pub const FRONTEND_SOLVE: &str = "/moby.buildkit.v1.frontend.LLBBridge/Solve";

const DEFINITION: u32 = 2;
const INPUTS: u32 = 10;
const FRONTEND_DEFINITION: u32 = 1;
const FRONTEND_INPUTS: u32 = 13;
const COMPATIBILITY_VERSION: u32 = 16;
const PROXY_NETWORK: u32 = 17;

/// A request with the fields that are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Solve {
    /// Those that the crate knows.
    pub request: SolveRequest,
    /// Which release's outputs are wanted, byte for byte. 0 leaves it to the daemon.
    pub compatibility_version: i64,
    /// Steps reach the network through a proxy of the daemon only.
    pub proxy_network: bool,
}

impl Message for Solve {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.request.encode_raw(buf);
        if self.compatibility_version != 0 {
            encoding::int64::encode(COMPATIBILITY_VERSION, &self.compatibility_version, buf);
        }
        if self.proxy_network {
            encoding::bool::encode(PROXY_NETWORK, &self.proxy_network, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            DEFINITION => merge_definition(&mut self.request.definition, wire_type, buf, context),
            INPUTS => merge_input(&mut self.request.frontend_inputs, wire_type, buf, context),
            COMPATIBILITY_VERSION => encoding::int64::merge(wire_type, &mut self.compatibility_version, buf, context),
            PROXY_NETWORK => encoding::bool::merge(wire_type, &mut self.proxy_network, buf, context),
            _ => self.request.merge_field(tag, wire_type, buf, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let version = match self.compatibility_version {
            0 => 0,
            version => encoding::int64::encoded_len(COMPATIBILITY_VERSION, &version),
        };
        let proxy = if self.proxy_network { encoding::bool::encoded_len(PROXY_NETWORK, &true) } else { 0 };
        self.request.encoded_len() + version + proxy
    }

    fn clear(&mut self) {
        *self = Solve::default();
    }
}

/// A frontend's request, its definition and inputs read in full.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrontendSolve(pub frontend::SolveRequest);

impl Message for FrontendSolve {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.0.encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            FRONTEND_DEFINITION => merge_definition(&mut self.0.definition, wire_type, buf, context),
            FRONTEND_INPUTS => merge_input(&mut self.0.frontend_inputs, wire_type, buf, context),
            _ => self.0.merge_field(tag, wire_type, buf, context),
        }
    }

    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

fn merge_definition(
    definition: &mut Option<Definition>,
    wire_type: WireType,
    buf: &mut impl Buf,
    context: DecodeContext,
) -> Result<(), DecodeError> {
    let mut bytes = Vec::new();
    encoding::bytes::merge(wire_type, &mut bytes, buf, context)?;
    *definition = Some(crate::read_definition(&bytes)?);
    Ok(())
}

/// One entry of the map.
fn merge_input(
    inputs: &mut HashMap<String, Definition>,
    wire_type: WireType,
    buf: &mut impl Buf,
    context: DecodeContext,
) -> Result<(), DecodeError> {
    encoding::check_wire_type(WireType::LengthDelimited, wire_type)?;
    let mut read: HashMap<String, Vec<u8>> = HashMap::new();
    encoding::hash_map::merge(encoding::string::merge, encoding::bytes::merge, &mut read, buf, context)?;
    for (name, bytes) in read {
        inputs.insert(name, crate::read_definition(&bytes)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_fields_and_old_ones_are_read() {
        let request = SolveRequest { r#ref: "a build".to_owned(), internal: true, ..SolveRequest::default() };
        let old = Solve::decode(request.encode_to_vec().as_slice()).expect("read");
        assert_eq!(old, Solve { request: request.clone(), ..Solve::default() });
        let new = Solve { request, compatibility_version: 20, proxy_network: true };
        let bytes = new.encode_to_vec();
        assert_eq!(bytes.len(), new.encoded_len());
        assert!(bytes.ends_with(&[0x80, 0x01, 20, 0x88, 0x01, 1]), "fields 16 and 17: {bytes:?}");
        assert_eq!(Solve::decode(bytes.as_slice()).expect("read"), new);
        // Field 7 of an op's metadata, in the definition of either request.
        let limits = [0x3a, 2, 8, 5];
        let entry = [&[0x0a, 1, b'x', 0x12, 4][..], &limits].concat();
        let definition = [&[0x12, 9][..], &entry].concat();
        let resources = |definition: Option<Definition>| {
            crate::LinuxResources::of(&definition.expect("a definition").metadata["x"]).map(|limits| limits.memory)
        };
        let solve = Solve::decode([&[0x12, 11][..], &definition].concat().as_slice()).expect("read");
        assert_eq!(resources(solve.request.definition), Some(5));
        let solve = FrontendSolve::decode([&[0x0a, 11][..], &definition].concat().as_slice()).expect("read");
        assert_eq!(resources(solve.0.definition), Some(5));
        // And in a frontend's inputs.
        let inputs = [&[0x0a, 1, b'i', 0x12, 11][..], &definition].concat();
        let mut solve = Solve::decode([&[0x52, 16][..], &inputs].concat().as_slice()).expect("read");
        assert_eq!(resources(solve.request.frontend_inputs.remove("i")), Some(5));
        let mut solve = FrontendSolve::decode([&[0x6a, 16][..], &inputs].concat().as_slice()).expect("read");
        assert_eq!(resources(solve.0.frontend_inputs.remove("i")), Some(5));
        assert!(Solve::decode(&[0x50, 1][..]).is_err(), "a number is no map");
        assert!(Solve::decode(&[0x8a, 0x01, 0][..]).is_err(), "bytes are no bool");
    }
}
