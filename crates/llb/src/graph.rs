//! Reading a `pb.Definition`: decode, check, order.

use std::collections::HashMap;

use base::{Digest, DigestParseError};
use proto::Message as _;

use crate::passthrough::Passthrough;
use crate::pb;

/// A definition that was read: vertices in an order in which inputs come first.
///
/// Invariants: every input names an earlier vertex, no cycles, no dangling digests, every vertex is
/// reachable from [`output`](Graph::output) (others are dropped, as upstream does).
#[derive(Clone, Debug)]
pub struct Graph {
    vertices: Vec<Vertex>,
    output: Option<Edge>,
    source: Option<pb::Source>,
}

/// Place of a vertex in [`Graph::vertices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(pub u32);

/// One output of a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The vertex.
    pub vertex: VertexId,
    /// Which of its outputs.
    pub index: u32,
}

/// One op of the graph.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// Digest of the op's bytes as they were received.
    pub digest: Digest,
    /// The decoded op. Its `inputs` are the same as `inputs` here.
    pub op: pb::Op,
    /// What it is if `op` holds none: it hands on inputs.
    pub passthrough: Option<Passthrough>,
    /// What it reads.
    pub inputs: Vec<Edge>,
    /// Hints and texts that are not part of the digest.
    pub metadata: pb::OpMetadata,
}

impl Vertex {
    /// What people call this vertex: the client's name for it, or the op in words.
    pub fn name(&self) -> String {
        if let Some(name) = self.metadata.description.get("llb.customname") {
            return name.clone();
        }
        match &self.passthrough {
            Some(passthrough) => format!("passthrough {}", passthrough.id),
            None => crate::text::op_name(&self.op),
        }
    }

    /// The limits of the step, if it has any.
    pub fn resources(&self) -> Option<proto::LinuxResources> {
        proto::LinuxResources::of(&self.metadata)
    }

    /// Whether the client asked to ignore the cache here.
    pub fn ignore_cache(&self) -> bool {
        self.metadata.ignore_cache
    }
}

/// Bounds on what a client may send.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most vertices of one definition.
    pub vertices: usize,
    /// Most bytes of one op.
    pub op_bytes: usize,
    /// Most inputs over all vertices.
    pub edges: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { vertices: 100_000, op_bytes: 16 << 20, edges: 2_000_000 }
    }
}

/// Why a definition was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that are no `pb.Op`.
    #[error("op {index} of the definition does not decode")]
    Decode {
        /// Its place in the definition.
        index: usize,
        /// What prost says.
        source: prost::DecodeError,
    },
    /// The whole definition does not decode.
    #[error("the definition does not decode")]
    DecodeDefinition(#[source] prost::DecodeError),
    /// An input names a digest that no op has.
    #[error("op {op} reads {input}, which is not part of the definition")]
    Dangling {
        /// The reader.
        op: Digest,
        /// The missing digest.
        input: String,
    },
    /// An input's digest is malformed.
    #[error("op {op} has a malformed input")]
    BadDigest {
        /// The reader.
        op: Digest,
        /// Why.
        source: DigestParseError,
    },
    /// An output index below zero.
    #[error("op {op} reads output {index} of an input")]
    BadIndex {
        /// The reader.
        op: Digest,
        /// The index.
        index: i64,
    },
    /// It hands on nothing, or what it does not read.
    #[error("op {index} of the definition passes on inputs that it does not have")]
    BadPassthrough {
        /// Its place in the definition.
        index: usize,
    },
    /// The last op must name the output by exactly one input and hold no op.
    #[error("the definition does not end in one output")]
    NoOutput,
    /// Ops that read each other. A digest cannot contain itself, so this is a forged definition.
    #[error("op {0} reads itself through its inputs")]
    Cycle(Digest),
    /// Over a limit.
    #[error("the definition has {what}, more than the {limit} allowed")]
    TooLarge {
        /// What there is too much of.
        what: String,
        /// The limit.
        limit: usize,
    },
}

impl Graph {
    /// Reads marshalled `pb.Definition` bytes.
    pub fn decode(bytes: &[u8], limits: Limits) -> Result<Graph, Error> {
        Graph::new(pb::Definition::decode(bytes).map_err(Error::DecodeDefinition)?, limits)
    }

    /// Reads a definition. An empty one is `scratch`: no vertices, no output.
    pub fn new(definition: pb::Definition, limits: Limits) -> Result<Graph, Error> {
        if definition.def.is_empty() {
            return Ok(Graph { vertices: Vec::new(), output: None, source: definition.source });
        }
        let too_large = |what: String, limit| Err(Error::TooLarge { what, limit });
        if definition.def.len() > limits.vertices {
            return too_large(format!("{} ops", definition.def.len()), limits.vertices);
        }
        let mut raw = Vec::with_capacity(definition.def.len());
        let mut by_digest = HashMap::with_capacity(definition.def.len());
        let mut edges = 0;
        for (index, bytes) in definition.def.iter().enumerate() {
            if bytes.len() > limits.op_bytes {
                return too_large(format!("an op of {} bytes", bytes.len()), limits.op_bytes);
            }
            let op = pb::Op::decode(bytes.as_slice()).map_err(|source| Error::Decode { index, source })?;
            edges += op.inputs.len();
            let digest = Digest::of(bytes);
            by_digest.insert(digest, index);
            let passthrough = match op.op {
                Some(_) => None,
                None => Passthrough::read(bytes, op.inputs.len(), index)?,
            };
            raw.push((digest, op, passthrough));
        }
        if edges > limits.edges {
            return too_large(format!("{edges} inputs"), limits.edges);
        }
        Reader { raw, by_digest, metadata: definition.metadata, order: Vec::new(), place: HashMap::new() }
            .read(definition.source)
    }

    /// Lets sources be changed; `change` says whether it did. What they and their readers are called then is what a client
    /// would call them that had asked for the changed sources. Answers the new names with the old ones.
    pub fn change_sources<E>(
        &mut self,
        mut change: impl FnMut(&Digest, &mut pb::SourceOp) -> Result<bool, E>,
    ) -> Result<Vec<(Digest, Digest)>, E> {
        let mut renamed = Vec::new();
        for index in 0..self.vertices.len() {
            let (before, vertex) = self.vertices.split_at_mut(index);
            let vertex = &mut vertex[0];
            let mut changed = match &mut vertex.op.op {
                Some(pb::op::Op::Source(source)) => change(&vertex.digest, source)?,
                _ => false,
            };
            for (input, edge) in vertex.op.inputs.iter_mut().zip(&vertex.inputs) {
                let digest = before[edge.vertex.0 as usize].digest.to_string();
                if input.digest != digest {
                    input.digest = digest;
                    changed = true;
                }
            }
            if changed {
                let mut bytes = vertex.op.encode_to_vec();
                // The op's own message does not know this kind.
                if let Some(passthrough) = &vertex.passthrough {
                    bytes.extend(passthrough.encode_to_vec());
                }
                let digest = Digest::of(bytes);
                renamed.push((digest, std::mem::replace(&mut vertex.digest, digest)));
            }
        }
        Ok(renamed)
    }

    /// The steps, with what they are called: they still are when they are changed.
    pub fn steps_mut(&mut self) -> impl Iterator<Item = (Digest, &mut pb::ExecOp)> {
        self.vertices.iter_mut().filter_map(|vertex| match &mut vertex.op.op {
            Some(pb::op::Op::Exec(exec)) => Some((vertex.digest, exec)),
            _ => None,
        })
    }

    /// The vertices, inputs first.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// One vertex.
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.vertices[id.0 as usize]
    }

    /// What the definition stands for; none for `scratch`.
    pub fn output(&self) -> Option<Edge> {
        self.output
    }

    /// The source map, if the client sent one.
    pub fn source(&self) -> Option<&pb::Source> {
        self.source.as_ref()
    }
}

struct Reader {
    raw: Vec<(Digest, pb::Op, Option<Passthrough>)>,
    by_digest: HashMap<Digest, usize>,
    metadata: std::collections::BTreeMap<String, pb::OpMetadata>,
    order: Vec<Vertex>,
    /// Raw index to place in `order`; none while its inputs are being visited.
    place: HashMap<usize, Option<VertexId>>,
}

impl Reader {
    fn read(mut self, source: Option<pb::Source>) -> Result<Graph, Error> {
        let (digest, last, passthrough) = self.raw.last().cloned().ok_or(Error::NoOutput)?;
        if last.op.is_some() || passthrough.is_some() || last.inputs.len() != 1 {
            return Err(Error::NoOutput);
        }
        let (raw, index) = self.resolve(digest, &last.inputs[0])?;
        let vertex = self.visit(raw)?;
        Ok(Graph { vertices: self.order, output: Some(Edge { vertex, index }), source })
    }

    fn resolve(&self, op: Digest, input: &pb::Input) -> Result<(usize, u32), Error> {
        let digest: Digest = input.digest.parse().map_err(|source| Error::BadDigest { op, source })?;
        let raw = self.by_digest.get(&digest);
        let raw = *raw.ok_or_else(|| Error::Dangling { op, input: input.digest.clone() })?;
        let index = u32::try_from(input.index).map_err(|_| Error::BadIndex { op, index: input.index })?;
        Ok((raw, index))
    }

    /// Depth first without recursion: definitions may be thousands of ops deep.
    fn visit(&mut self, root: usize) -> Result<VertexId, Error> {
        let mut stack = vec![(root, 0)];
        self.place.insert(root, None);
        while let Some((raw, next)) = stack.pop() {
            let (digest, op, _) = &self.raw[raw];
            if let Some(input) = op.inputs.get(next) {
                let (child, _) = self.resolve(*digest, input)?;
                stack.push((raw, next + 1));
                match self.place.get(&child) {
                    Some(Some(_)) => {}
                    Some(None) => return Err(Error::Cycle(self.raw[child].0)),
                    None => {
                        self.place.insert(child, None);
                        stack.push((child, 0));
                    }
                }
                continue;
            }
            let vertex = self.finish(raw)?;
            let id = VertexId(u32::try_from(self.order.len()).expect("limited by `Limits::vertices`"));
            self.order.push(vertex);
            self.place.insert(raw, Some(id));
        }
        Ok(self.place[&root].expect("the loop above ended with the root"))
    }

    fn finish(&mut self, raw: usize) -> Result<Vertex, Error> {
        let (digest, op, passthrough) = self.raw[raw].clone();
        if op.op.is_none() && passthrough.is_none() {
            return Err(Error::NoOutput);
        }
        let mut inputs = Vec::with_capacity(op.inputs.len());
        for input in &op.inputs {
            let (child, index) = self.resolve(digest, input)?;
            let vertex = self.place[&child].expect("inputs are placed before their readers");
            inputs.push(Edge { vertex, index });
        }
        let metadata = self.metadata.remove(&digest.to_string()).unwrap_or_default();
        Ok(Vertex { digest, op, passthrough, inputs, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(identifier: &str) -> Vec<u8> {
        let source = pb::SourceOp { identifier: identifier.into(), ..Default::default() };
        pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() }.encode_to_vec()
    }

    fn reads(inputs: &[(&[u8], i64)], op: Option<pb::op::Op>) -> Vec<u8> {
        let inputs = inputs
            .iter()
            .map(|(bytes, index)| pb::Input { digest: Digest::of(bytes).to_string(), index: *index })
            .collect();
        pb::Op { inputs, op, ..Default::default() }.encode_to_vec()
    }

    fn merge() -> Option<pb::op::Op> {
        Some(pb::op::Op::Merge(pb::MergeOp::default()))
    }

    fn graph(def: Vec<Vec<u8>>) -> Result<Graph, Error> {
        Graph::new(pb::Definition { def, ..Default::default() }, Limits::default())
    }

    #[test]
    fn inputs_come_first_and_unreachable_ops_are_dropped() {
        let (a, b, unused) = (source("a"), source("b"), source("c"));
        let m = reads(&[(&a, 0), (&b, 0), (&a, 0)], merge());
        let out = reads(&[(&m, 0)], None);
        let g = graph(vec![m.clone(), unused, b, a, out]).expect("a good graph");
        assert_eq!(g.vertices().len(), 3);
        assert_eq!(g.vertices()[2].digest, Digest::of(&m));
        assert_eq!(g.vertices()[2].inputs.len(), 3);
        assert_eq!(g.output(), Some(Edge { vertex: VertexId(2), index: 0 }));
        assert!(graph(vec![]).expect("scratch").output().is_none());
    }

    #[test]
    fn bad_graphs_are_refused() {
        let a = source("a");
        let dangling = reads(&[(b"nothing", 0)], merge());
        let out = reads(&[(&dangling, 0)], None);
        assert!(matches!(graph(vec![dangling, out]), Err(Error::Dangling { .. })));
        assert!(matches!(graph(vec![a.clone()]), Err(Error::NoOutput)));
        assert!(matches!(graph(vec![a.clone(), reads(&[(&a, -1)], None)]), Err(Error::BadIndex { .. })));
        assert!(matches!(graph(vec![vec![0xff]]), Err(Error::Decode { index: 0, .. })));
        let limits = Limits { vertices: 1, ..Limits::default() };
        let def = pb::Definition { def: vec![a.clone(), a], ..Default::default() };
        assert!(matches!(Graph::new(def, limits), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn passed_on_inputs_are_checked() {
        let (a, b) = (source("a"), source("b"));
        let pass = |outputs: &[i64]| {
            let mut op = reads(&[(&a, 0), (&b, 0)], None);
            let passthrough = Passthrough { id: "x".into(), outputs: outputs.to_vec() }.encode_to_vec();
            op.extend([8 << 3 | 2, passthrough.len() as u8]);
            op.extend(passthrough);
            op
        };
        let good = pass(&[1, 0, 1]);
        let g = graph(vec![a.clone(), b.clone(), good.clone(), reads(&[(&good, 2)], None)]).expect("a good graph");
        let vertex = &g.vertices()[2];
        assert_eq!(vertex.passthrough.as_ref().map(|p| &p.outputs[..]), Some(&[1, 0, 1][..]));
        assert_eq!(vertex.name(), "passthrough x");
        let key = crate::key::passthrough(vertex.passthrough.as_ref().expect("seen"), 2);
        let said = r#"{"Type":"buildkit.passthrough.v0","Passthrough":{"id":"x","outputs":[1,0,1]}}"#;
        assert_eq!((key.digest, key.inputs.len()), (Digest::of(said), 2));
        for outputs in [&[2][..], &[-1], &[]] {
            let bad = pass(outputs);
            let out = reads(&[(&bad, 0)], None);
            assert!(matches!(graph(vec![a.clone(), b.clone(), bad, out]), Err(Error::BadPassthrough { index: 2 })));
        }
        assert!(matches!(graph(vec![a.clone(), b.clone(), pass(&[0])]), Err(Error::NoOutput)));
    }

    #[test]
    fn changed_sources_are_called_what_they_are_now() {
        let (a, b) = (source("a"), source("b"));
        let [m, n] = [&a, &b].map(|source| reads(&[(source, 0)], merge()));
        let top = |m: &[u8]| reads(&[(m, 0), (&b, 0)], merge());
        let build = |below: &[u8], m: &[u8]| {
            let top = top(m);
            let out = reads(&[(&top, 0)], None);
            graph(vec![below.to_vec(), b.clone(), m.to_vec(), top, out]).expect("a good graph")
        };
        let mut changed = build(&a, &m);
        let renamed = changed.change_sources(|_, source| {
            let is_a = source.identifier == "a";
            source.identifier = "b".to_owned();
            Ok::<_, ()>(is_a)
        });
        let renamed = renamed.expect("nothing failed");
        let names = |graph: &Graph| graph.vertices().iter().map(|vertex| vertex.digest).collect::<Vec<_>>();
        let of = |bytes: &[u8]| Digest::of(bytes);
        assert_eq!(renamed, [(of(&b), of(&a)), (of(&n), of(&m)), (of(&top(&n)), of(&top(&m)))]);
        assert_eq!(names(&changed).last(), Some(&of(&top(&n))));
    }

    #[test]
    fn deep_graphs_do_not_overflow_the_stack() {
        let mut def = vec![source("a")];
        for _ in 0..50_000 {
            let next = reads(&[(def.last().expect("not empty"), 0)], merge());
            def.push(next);
        }
        let out = reads(&[(def.last().expect("not empty"), 0)], None);
        def.push(out);
        assert_eq!(graph(def).expect("deep is fine").vertices().len(), 50_001);
    }
}
