//! The Dockerfile frontend: bytes in, LLB out.
//!
//! The way of a Dockerfile: [`parse`] splits bytes into lines, [`instruction`] understands each line, `lower` makes LLB
//! and the image configuration; on the way `lint` looks for what may not be meant. [`build()`] is the way in: it takes the options of `--frontend dockerfile.v0` and asks
//! through [`Ask`] for files, images and inputs. `request` answers questions about a file that is not built. Vertex digests and configurations equal those of BuildKit's own
//! frontend; golden files hold what upstream computed.
//!
//! Absent here: files, network, async, clocks. Solving is the engine's.

mod ask;
mod context;
mod error;
pub mod expand;
mod frontend;
mod git;
mod glob;
pub mod ignore;
pub mod instruction;
mod lint;
mod lower;
mod options;
pub mod parse;
mod platform;
mod request;
mod resources;

pub use ask::{Ask, ImageRequest, LayoutStore, LocalRead, ReadRequest, ResolvedImage};
pub use error::{Error, Mistake, Result, Unsupported};
pub use frontend::{Built, Gateway, Outcome, PlatformResult, Request, build, is_built_in_image};
pub use lint::Warning;
pub use options::{NoCache, Options, check_attestation};
pub use resources::is_number_list;
