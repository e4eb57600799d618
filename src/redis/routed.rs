//! A connection that follows a slot to another server.
//!
//! A server that does not have the slot of a key answers `MOVED`, and names the one that has it. A server that is giving the slot
//! away answers `ASK` for a key that is not there any more, or not yet: the command is sent to the other server after an `ASKING`.
//! Only commands that got such an answer are sent again: the others were done. Commands on several keys, of which some have moved,
//! get `TRYAGAIN` until all have.
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#redirection-and-resharding>)

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::{
    Arg, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerError, ServerErrorKind, Value,
};

use super::call::Call;
use super::link::{Failure, Link};
use super::topology::Topology;

/// How often a command follows its slot, or waits until its keys have moved.
const MOST_TURNS: usize = 8;
/// The pause while keys of a command are on two servers.
const WHILE_KEYS_MOVE: Duration = Duration::from_millis(20);

/// A connection for any command.
pub struct Routed {
    connection: MultiplexedConnection,
    /// None if no slot can move.
    topology: Option<Arc<Topology>>,
    /// The server that the last command had to be sent to instead. Scripts are loaded there too.
    elsewhere: Option<Link<MultiplexedConnection>>,
}

/// Where to send a command again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Again {
    /// To the server with this name. The slot is there, or it is being moved there.
    To { name: String, is_moving: bool },
    /// To the same server, a little later.
    Later,
}

impl Routed {
    pub(super) fn new(connection: MultiplexedConnection, topology: &Arc<Topology>) -> Self {
        let topology = topology.is_cluster().then(|| Arc::clone(topology));
        Self { connection, topology, elsewhere: None }
    }

    /// Sends commands, and returns the answers to each, also those that are errors.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn answers(&mut self, commands: &Pipeline) -> RedisResult<Vec<Value>> {
        let mut answers = self.connection.send_packed_commands(commands, 0, commands.len()).await?;
        let Some(topology) = self.topology.clone() else { return Ok(answers) };
        for _ in 0..MOST_TURNS {
            let Some(again) = answers.iter().find_map(again_of) else { break };
            let link = self.turn(&topology, &again).await?;
            // A script that the other server does not know is loaded by the same pipeline.
            let is_sent = |(command, answer): (&Cmd, &Value)| {
                again_of(answer) == Some(again.clone()) || link.is_some() && is_script_command(command)
            };
            let sent: Vec<_> = commands.cmd_iter().zip(&answers).map(is_sent).collect();
            let some =
                commands.cmd_iter().zip(&sent).filter_map(|(command, is_sent)| is_sent.then_some(command));
            let mut new = self.send_again(link.as_ref(), &again, some).await?.into_iter();
            for (answer, _) in answers.iter_mut().zip(&sent).filter(|(_, is_sent)| **is_sent) {
                *answer = new.next().ok_or_else(no_answer)?;
            }
        }
        Ok(answers)
    }

    async fn one(&mut self, command: &Cmd) -> RedisResult<Value> {
        let Some(topology) = self.topology.clone() else {
            return self.connection.send_packed_command(command).await;
        };
        if let Some(link) = &self.elsewhere
            && is_script_command(command)
        {
            let load =
                async |connection: &mut MultiplexedConnection| connection.send_packed_command(command).await;
            link.run(Call::Ask, load).await.map_err(error_of)?;
        }
        let mut answer = as_value(self.connection.send_packed_command(command).await)?;
        for _ in 0..MOST_TURNS {
            let Some(again) = again_of(&answer) else { break };
            let link = self.turn(&topology, &again).await?;
            let mut new = self.send_again(link.as_ref(), &again, [command].into_iter()).await?;
            answer = new.pop().ok_or_else(no_answer)?;
        }
        Ok(answer)
    }

    async fn transaction(
        &mut self,
        commands: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut done = self.connection.send_packed_commands(commands, offset, count).await;
        let Some(topology) = self.topology.clone() else { return done };
        for _ in 0..MOST_TURNS {
            let Err(error) = &done else { break };
            let refused = server_errors(error);
            // One command that was refused is enough to refuse all. If only some were, their keys are on both sides.
            let Some(again) = refused.iter().find_map(again_after) else { break };
            let again =
                if refused.len() < commands.len() && matches!(again, Again::To { is_moving: true, .. }) {
                    Again::Later
                } else {
                    again
                };
            let link = self.turn(&topology, &again).await?;
            done = match &link {
                Some(link) => whole_transaction(link, &again, commands).await.map(|answer| vec![answer]),
                None => self.connection.send_packed_commands(commands, offset, count).await,
            };
        }
        done
    }

    /// Waits, or finds the connection to the other server.
    async fn turn(
        &mut self,
        topology: &Arc<Topology>,
        again: &Again,
    ) -> RedisResult<Option<Link<MultiplexedConnection>>> {
        let Again::To { name, is_moving } = again else {
            tokio::time::sleep(WHILE_KEYS_MOVE).await;
            return Ok(None);
        };
        let node = topology.redirected(name, *is_moving, 1).await.map_err(|_| unknown(name))?;
        let link = topology.control(node).ok_or_else(no_answer)?.clone();
        self.elsewhere = Some(link.clone());
        Ok(Some(link))
    }

    /// Sends commands to the other server, or once more to the same.
    async fn send_again<'a>(
        &mut self,
        link: Option<&Link<MultiplexedConnection>>,
        again: &Again,
        commands: impl Iterator<Item = &'a Cmd>,
    ) -> RedisResult<Vec<Value>> {
        let is_moving = matches!(again, Again::To { is_moving: true, .. });
        let mut all = Pipeline::new();
        for command in commands {
            if is_moving {
                all.cmd("ASKING");
            }
            all.add_command(command.clone());
        }
        let answers = match link {
            None => self.connection.send_packed_commands(&all, 0, all.len()).await?,
            Some(link) => {
                let send = async |connection: &mut MultiplexedConnection| {
                    connection.send_packed_commands(&all, 0, all.len()).await
                };
                link.run(Call::Ask, send).await.map_err(error_of)?
            }
        };
        let (first, step) = if is_moving { (1, 2) } else { (0, 1) };
        Ok(answers.into_iter().skip(first).step_by(step).collect())
    }
}

impl ConnectionLike for Routed {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.one(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        if commands.is_transaction() {
            Box::pin(self.transaction(commands, offset, count))
        } else {
            Box::pin(self.answers(commands))
        }
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

/// Sends a transaction to another server. An `ASKING` before it holds for all of it. Returns the answer to `EXEC`.
async fn whole_transaction(
    link: &Link<MultiplexedConnection>,
    again: &Again,
    commands: &Pipeline,
) -> RedisResult<Value> {
    let mut all = Pipeline::new();
    if matches!(again, Again::To { is_moving: true, .. }) {
        all.cmd("ASKING");
    }
    all.cmd("MULTI");
    for command in commands.cmd_iter() {
        all.add_command(command.clone());
    }
    all.cmd("EXEC");
    let send = async |connection: &mut MultiplexedConnection| {
        connection.send_packed_commands(&all, 0, all.len()).await
    };
    let mut answers = link.run(Call::Ask, send).await.map_err(error_of)?;
    match answers.pop() {
        Some(Value::ServerError(error)) => {
            // What was refused says more than that the transaction was.
            let refused = answers.into_iter().find_map(|answer| match answer {
                Value::ServerError(error) => Some(error),
                _ => None,
            });
            Err(refused.unwrap_or(error).into())
        }
        answer => answer.ok_or_else(no_answer),
    }
}

/// The errors of the single commands.
fn server_errors(error: &RedisError) -> Vec<ServerError> {
    let errors = error.clone().into_server_errors();
    errors.map_or_else(Vec::new, |errors| errors.iter().map(|(_, error)| error.clone()).collect())
}

/// An error of the server, as the answer that it is.
fn as_value(answer: RedisResult<Value>) -> RedisResult<Value> {
    match answer {
        Err(error) => match server_errors(&error).into_iter().next() {
            Some(server_error) => Ok(Value::ServerError(server_error)),
            None => Err(error),
        },
        answer => answer,
    }
}

fn again_of(answer: &Value) -> Option<Again> {
    match answer {
        Value::ServerError(error) => again_after(error),
        _ => None,
    }
}

/// Where to send the command again that got this error.
pub(super) fn again_after(error: &ServerError) -> Option<Again> {
    match error.kind()? {
        ServerErrorKind::Moved => Some(Again::To { name: named_node(error)?, is_moving: false }),
        ServerErrorKind::Ask => Some(Again::To { name: named_node(error)?, is_moving: true }),
        ServerErrorKind::TryAgain => Some(Again::Later),
        _ => None,
    }
}

/// The server that a `MOVED` or an `ASK` names.
fn named_node(error: &ServerError) -> Option<String> {
    error.details()?.split_ascii_whitespace().nth(1).map(str::to_owned)
}

fn is_script_command(command: &Cmd) -> bool {
    matches!(command.args_iter().next(), Some(Arg::Simple(b"SCRIPT")))
}

fn error_of(failure: Failure) -> RedisError {
    match failure {
        Failure::Answer(error) => error,
        Failure::NotConnected(error) => std::io::Error::other(error.to_string()).into(),
    }
}

fn unknown(name: &str) -> RedisError {
    let what = format!("the cluster does not know the server {name}");
    (ErrorKind::ClusterConnectionNotFound, "unknown server", what).into()
}

fn no_answer() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()
}
