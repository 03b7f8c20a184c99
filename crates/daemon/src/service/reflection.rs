//! gRPC's server reflection, as far as it lists services: what tools such as `grpcurl` ask first.

use futures_util::StreamExt as _;
use proto::health::health_server::HealthServer;
use proto::reflection::{Answer, Answered, Asked, Error, METHOD, Named, Question, SERVICES, Services};
use session::remote::service::Calls;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::content::ContentStore;
use super::control::{Answers, WithSessions};
use super::gateway::WithResources;
use super::health::Health;
use super::trace::TraceService;

/// Descriptors would be a copy of what others publish.
const NOT_HERE: &str =
    "only services are listed here: what they look like is told by BuildKit's .proto files (`grpcurl -proto`)";

/// All that is served, in the order of names.
const SERVED: [&str; 7] = [
    ContentStore::NAME,
    HealthServer::<Health>::NAME,
    Reflection::<0>::NAME,
    Reflection::<1>::NAME,
    WithSessions::NAME,
    WithResources::NAME,
    TraceService::NAME,
];

/// The service under its name of that index.
#[derive(Clone)]
pub(crate) struct Reflection<const NAME: usize>;

impl<const NAME: usize> Calls for Reflection<NAME> {
    const NAME: &'static str = SERVICES[NAME];

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path().rsplit('/').next() != Some(METHOD) {
            return Status::unimplemented(format!("there is only {METHOD}")).into_http();
        }
        let call = tower::service_fn(|questions: Request<Streaming<Question>>| {
            let answers: Answers<Answer> = Box::pin(questions.into_inner().map(|question| question.map(answer)));
            std::future::ready(Ok(Response::new(answers)))
        });
        Grpc::new(ProstCodec::<Answer, Question>::default()).streaming(call, request).await
    }
}

fn answer(question: Question) -> Answer {
    let error = |code: Code, message: &str| Answered::Error(Error { code: code.into(), message: message.to_owned() });
    let answered = match &question.asked {
        Some(Asked::Services(_)) => {
            let services = SERVED.map(|name| Named { name: name.to_owned() });
            Answered::Services(Services { services: services.into() })
        }
        Some(_) => error(Code::NotFound, NOT_HERE),
        None => error(Code::InvalidArgument, "nothing is asked"),
    };
    Answer { host: question.host.clone(), question: Some(question), answered: Some(answered) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_listed_and_nothing_else() {
        let ask = |asked| answer(Question { asked: Some(asked), ..Question::default() }).answered.expect("an answer");
        let Answered::Services(listed) = ask(Asked::Services(String::new())) else { panic!("no list") };
        let names: Vec<String> = listed.services.into_iter().map(|service| service.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names, SERVED);
        let Answered::Error(error) = ask(Asked::Symbol(SERVED[0].to_owned())) else { panic!("no error") };
        assert_eq!((error.code, &error.message[..]), (i32::from(Code::NotFound), NOT_HERE));
    }
}
