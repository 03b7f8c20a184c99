//! `moby.buildkit.v1.SolveRequest` with fields 16 and 17, which the crate with the other messages does not have yet: without
//! them what a client asks for there would be ignored.

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// The method that takes it.
pub const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";

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
        assert!(Solve::decode(&[0x8a, 0x01, 0][..]).is_err(), "bytes are no bool");
    }
}
