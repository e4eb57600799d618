//! The flags of callbacks.

use clap::Args;

use super::values;
use crate::callback::Settings;
use crate::callback::guard::Allow;
use crate::callback::signature::SigningKey;
use crate::platform::secret::{Secret, SecretArg};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Callbacks")]
#[allow(clippy::struct_field_names, reason = "fields are named after their flags")]
pub(super) struct CallbackFlags {
    /// Whether requests may name an endpoint; off refuses the requests that do
    #[arg(
        long, env = "HEADCOUNT_CALLBACKS", value_name = "on|off", default_value = "on",
        value_parser = values::on_off, action = clap::ArgAction::Set
    )]
    callbacks: bool,

    /// Where callbacks may go besides public addresses: blocks such as 10.0.0.0/8, host names, *.internal;
    /// separate several by commas
    #[arg(long, env = "HEADCOUNT_CALLBACK_ALLOW", value_name = "BLOCK|NAME", value_delimiter = ',')]
    callback_allow: Vec<Allow>,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_CALLBACK_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        help = "Sign callbacks after Standard Webhooks with this key: whsec_ and 24 to 64 bytes in Base64, or file:PATH \
                of a file that has it"
    )]
    callback_secret: Option<SecretArg>,

    /// Callbacks that may wait; headcount drops more
    #[arg(
        long, env = "HEADCOUNT_CALLBACK_QUEUE", value_name = "NUMBER", default_value = "10000",
        value_parser = values::up_to::<1_000_000>
    )]
    callback_queue: u32,

    /// Callbacks under way at a time
    #[arg(
        long, env = "HEADCOUNT_CALLBACK_CONCURRENCY", value_name = "NUMBER", default_value = "256",
        value_parser = values::up_to::<10_000>
    )]
    callback_concurrency: u32,

    /// Callbacks to one host a second, and how many may wait for it; headcount drops more
    #[arg(
        long, env = "HEADCOUNT_CALLBACK_HOST_RATE", value_name = "NUMBER", default_value = "100",
        value_parser = values::up_to::<1_000_000>
    )]
    callback_host_rate: u32,
}

impl CallbackFlags {
    pub(super) fn settings(self) -> Result<Settings, String> {
        let key = |arg| Secret::new(arg, "--callback-secret <SECRET>", SigningKey::parse);
        Ok(Settings {
            enabled: self.callbacks,
            allow: self.callback_allow,
            signing_key: self.callback_secret.as_ref().map(key).transpose()?,
            queue: self.callback_queue,
            concurrency: self.callback_concurrency,
            host_rate: self.callback_host_rate,
        })
    }
}
