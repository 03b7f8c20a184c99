//! `grpc.reflection.v1` and `v1alpha`, which are the same: what a server offers, for tools that know nothing of it. Written
//! down, not generated.

/// The service, under its two names.
pub const SERVICES: [&str; 2] = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
/// The one method: a stream of [`Question`] to a stream of [`Answer`].
pub const METHOD: &str = "ServerReflectionInfo";

/// Asks something.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Question {
    /// Of which host.
    #[prost(string, tag = "1")]
    pub host: String,
    /// What.
    #[prost(oneof = "Asked", tags = "3, 4, 5, 6, 7")]
    pub asked: Option<Asked>,
}

/// What is asked.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Asked {
    /// A file.
    #[prost(string, tag = "3")]
    File(String),
    /// The file that has a message, a service or a method.
    #[prost(string, tag = "4")]
    Symbol(String),
    /// The file that has an extension.
    #[prost(bytes = "vec", tag = "5")]
    Extension(Vec<u8>),
    /// The extensions of a message.
    #[prost(string, tag = "6")]
    Extensions(String),
    /// All services.
    #[prost(string, tag = "7")]
    Services(String),
}

/// Answers a [`Question`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    /// Its host.
    #[prost(string, tag = "1")]
    pub host: String,
    /// It.
    #[prost(message, optional, tag = "2")]
    pub question: Option<Question>,
    /// The answer.
    #[prost(oneof = "Answered", tags = "6, 7")]
    pub answered: Option<Answered>,
}

/// What is answered.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answered {
    /// Services.
    #[prost(message, tag = "6")]
    Services(Services),
    /// There is no answer.
    #[prost(message, tag = "7")]
    Error(Error),
}

/// Services.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Services {
    /// They.
    #[prost(message, repeated, tag = "1")]
    pub services: Vec<Named>,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Error {
    /// A code of gRPC.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Named {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
}
