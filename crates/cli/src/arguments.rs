//! The one definition of every command and flag; parser and help both come from it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use stillpoint_agent::place::Where;

/// Self-hosted, consistent backups of a whole running application environment.
#[derive(Debug, Parser)]
#[command(
    name = "stillpoint",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Examples:\n  \
        stillpoint demo                    see it work on a real environment\n  \
        stillpoint up                      keep it running for ./stillpoint.yaml\n  \
        stillpoint backup:create           back up the environment\n  \
        stillpoint backup:list             what there is to restore\n  \
        stillpoint backup:restore ID       put it back\n\n\
        `stillpoint backup:create` and `stillpoint backup create` are the same.\n\
        Exit status: 0 done, 1 failed, 2 usage or configuration, 3 partial."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The project; it must be the configuration's own
    #[arg(short, long, global = true, env = "STILLPOINT_PROJECT", value_name = "ID")]
    pub project: Option<String>,
    /// The environment; needed where the configuration has several
    #[arg(short, long, global = true, env = "STILLPOINT_ENVIRONMENT", value_name = "NAME")]
    pub environment: Option<String>,
    /// The configuration
    #[arg(
        short,
        long,
        global = true,
        env = "STILLPOINT_CONFIG",
        value_name = "FILE",
        default_value = "stillpoint.yaml"
    )]
    pub config: PathBuf,
    /// Where keys, sockets and journals are kept [default: /var/lib/stillpoint as root, else
    /// ~/.local/share/stillpoint]
    #[arg(long, global = true, env = "STILLPOINT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// How data is printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Act on this host's configuration, without a server
    #[arg(long, global = true, env = "STILLPOINT_LOCAL")]
    pub local: bool,
    /// Do not wait for the activity that was started
    #[arg(short = 'W', long, global = true)]
    pub no_wait: bool,
    /// Answer yes to every question
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more; twice for a log of everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Global {
    /// Where to look, as the flags say.
    pub(crate) fn place(&self) -> Where {
        Where {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            project: self.project.clone(),
            environment: self.environment.clone(),
        }
    }
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns with a heading
    Table,
    /// Columns separated by tabs, no heading
    Plain,
    /// Comma-separated values with a heading
    Csv,
    /// JSON
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Back up and restore a real environment under load, and prove that nothing was lost
    Demo(crate::demo::DemoArgs),
    /// Take, list, show and restore backups
    #[command(subcommand)]
    Backup(BackupCommand),
    /// The same as backup:list
    #[command(hide = true)]
    Backups(ListArgs),
    /// List, show, follow and cancel activities
    #[command(subcommand)]
    Activity(ActivityCommand),
    /// List, show, activate and deactivate environments
    #[command(subcommand)]
    Environment(EnvironmentCommand),
    /// Who may do what in the project
    #[command(subcommand)]
    User(UserCommand),
    /// Tokens to log in with
    #[command(subcommand)]
    ApiToken(TokenCommand),
    /// Where backups are stored
    #[command(subcommand)]
    Location(LocationCommand),
    /// The repository engine alone, on a directory
    Repo(crate::repo::RepoArgs),
    /// Run a gateway of the configuration: it stands before the application and holds requests
    #[command(after_help = "Prints `ready URL` once it accepts requests there. Where the \
        configuration gives it an `endpoint`, it also answers proxies that ask before each request \
        whether it may begin.\n\nExample:\n  stillpoint gateway web     the gateway `web` of \
        ./stillpoint.yaml, in the foreground")]
    Gateway(GatewayRunArgs),
    /// Run the watchdog: it acts in the stead of a backup or restore that was killed
    #[command(after_help = "It may have to undo or finish a restore, so it needs the same \
        password variables (`password_env` in stillpoint.yaml) as backup:restore does. One \
        watchdog serves all environments of a data directory. When it starts, it recovers every \
        restore that was cut off before.\n\nExample:\n  \
        SHOP_DB_PASSWORD=... stillpoint watchdog     in the foreground")]
    Watchdog(WatchdogArgs),
    /// Finish or undo a restore that was cut off
    Recover,
    /// Say what works here and what is missing, for backup and for restore; changes nothing
    Doctor,
    /// Print completions for a shell
    #[command(after_help = "Example:\n  stillpoint completions bash > \
        /etc/bash_completion.d/stillpoint")]
    Completions(CompletionsArgs),
    /// Write man pages
    Man(ManArgs),
    /// Run everything for this host's configuration: server, agent, gateways and watchdog
    #[command(after_help = "In the foreground. Prints `ready URL` once the API can be used; the \
        first administrator's token is then in admin.token in the data directory. The agent and \
        the watchdog need the variables that `password_env` names in stillpoint.yaml; server and \
        gateways never see them. As root the gateways run as --gateway-user.\n\nExamples:\n  \
        SHOP_DB_PASSWORD=... stillpoint up\n  \
        stillpoint up --listen 0.0.0.0:8470 --tls-cert cert.pem --tls-key key.pem")]
    Up(UpArgs),
    /// The server alone: control plane and API
    Server(ServerArgs),
    /// The agent alone: it runs backups and restores on the server's order
    Agent(AgentArgs),
    /// Part of `agent`: runs one order
    #[command(hide = true)]
    Task,
    /// Part of `demo`: the shop's web application
    #[command(hide = true)]
    DemoShop(crate::demo::ShopArgs),
    /// Part of `demo`: the shop's customers
    #[command(hide = true)]
    DemoLoad(crate::demo::LoadArgs),
    /// Part of `demo`: removes what a killed one has left
    #[command(hide = true)]
    DemoClean(crate::demo::CleanArgs),
}

/// What to do with backups.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Take a backup of a running environment
    #[command(after_help = "Prints the backup's id on stdout. The server's agent takes the \
        backup; with --local this process does, and needs a running gateway and watchdog.\n\nExamples:\n  stillpoint backup:create\n  stillpoint backup:create staging \
        --live\n  stillpoint backup:create --format json | jq .attributes.hold_ms")]
    Create(CreateArgs),
    /// List the backups of an environment, newest first
    List(ListArgs),
    /// Show one backup
    Get(GetArgs),
    /// Delete a backup. What only it needed stays stored until a prune
    Delete(DeleteArgs),
    /// Put a backup back: aside, verified, then swapped in; the old data stands until then
    #[command(after_help = "A safety backup is taken first. Code is not part of a backup: its \
        commit is printed.\n\nExamples:\n  stillpoint backup:restore 5ouvtgo4v75axijww7sqnftste2\n  \
        stillpoint backup:restore --only uploads     the newest backup, one part of it")]
    Restore(RestoreArgs),
}

/// Of `backup:create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The environment [default: -e, the only one, or the one named like the Git branch]
    pub name: Option<String>,
    /// Hold nothing: no interruption at all, but less reliable to restore
    #[arg(long)]
    pub live: bool,
}

/// Of `backup:delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The backup's id
    pub id: String,
}

/// Of `backup:list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The environment
    pub name: Option<String>,
}

/// Of `backup:get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The backup's id
    pub id: String,
    /// Only this property
    #[arg(short = 'P', long, value_name = "NAME")]
    pub property: Option<String>,
}

/// Of `backup:restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The backup's id [default: the newest]
    pub id: Option<String>,
    /// Only these services and mounts
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub only: Vec<String>,
    /// Do not back up what is there now first
    #[arg(long)]
    pub no_safety_backup: bool,
    /// Replace the data of this environment [default: the one that the backup is of]
    #[arg(long, value_name = "ENVIRONMENT")]
    pub target: Option<String>,
    /// The parent of a target that does not exist yet
    #[arg(long, value_name = "ENVIRONMENT")]
    pub branch_from: Option<String>,
    /// Leave the code alone; so far it always is
    #[arg(long)]
    pub no_code: bool,
}

/// What to do with activities.
#[derive(Debug, Subcommand)]
pub(crate) enum ActivityCommand {
    /// List activities, newest first; of one environment with -e
    List {
        /// At most so many
        #[arg(long, default_value_t = 25)]
        limit: u32,
    },
    /// Show one, as JSON
    Get {
        /// The activity's id
        id: String,
    },
    /// Show its log; follows it to its end
    Log {
        /// The activity's id
        id: String,
    },
    /// Ask it to stop; a restore that has begun to swap is finished
    Cancel {
        /// The activity's id [default: the newest that has not ended]
        id: Option<String>,
    },
}

/// What to do with environments.
#[derive(Debug, Subcommand)]
pub(crate) enum EnvironmentCommand {
    /// List them
    List,
    /// Show one, or a property of it, or set its title
    #[command(after_help = "Examples:\n  stillpoint environment:info -e main\n  \
        stillpoint environment:info -e main status\n  \
        stillpoint environment:info -e main title \"The shop\"")]
    Info {
        /// Only this property
        property: Option<String>,
        /// Its new value
        value: Option<String>,
    },
    /// Let it be backed up and restored
    Activate {
        /// The environment
        name: Option<String>,
    },
    /// Do not let it be backed up or restored; nothing of its data is touched
    Deactivate {
        /// The environment
        name: Option<String>,
    },
}

/// What to do with users.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// List who is in the project
    List,
    /// Let somebody in, or change what they may do; prints the user's id
    #[command(after_help = "Examples:\n  stillpoint user:add ann@example.com -r admin\n  \
        stillpoint user:add bob@example.com -r viewer -r staging:admin\n  \
        stillpoint user:add ci@example.com --machine -r production:admin\n  \
        stillpoint api-token:create ci --user ci@example.com")]
    Add {
        /// The e-mail address
        email: String,
        /// `admin`, `viewer`, or TYPE:ROLE such as `production:admin`, `staging:viewer`
        #[arg(short, long = "role", value_name = "ROLE", required = true)]
        roles: Vec<String>,
        /// For automation: it logs in with tokens that the project's admins make
        #[arg(long)]
        machine: bool,
    },
    /// Take somebody out of the project
    Delete {
        /// The e-mail address
        email: String,
    },
}

/// What to do with API tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// List them, without their secrets
    List {
        /// Of this machine user [default: your own]
        #[arg(long, value_name = "EMAIL")]
        user: Option<String>,
    },
    /// Make one; it is printed once
    Create {
        /// What it is for
        name: String,
        /// Of this machine user [default: your own]
        #[arg(long, value_name = "EMAIL")]
        user: Option<String>,
    },
    /// Revoke one, at once
    Delete {
        /// Its name or id
        token: String,
        /// Of this machine user [default: your own]
        #[arg(long, value_name = "EMAIL")]
        user: Option<String>,
    },
}

/// What to do with locations.
#[derive(Debug, Subcommand)]
pub(crate) enum LocationCommand {
    /// List them, and how they are
    ///
    /// healthy: it has everything. behind: it lacks something, which is copied in the background.
    /// empty: it holds nothing yet, and is filled. down: it cannot be used now, and why.
    List,
    /// Give every location what it lacks, now
    ///
    /// The agent does so by itself, once a minute: this is for those who do not want to wait.
    Heal {
        /// This location's disk is another one: it may be filled anew
        #[arg(long, value_name = "NAME")]
        replaced: Option<String>,
    },
}

/// Of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Of `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Where to
    pub directory: PathBuf,
}

/// Of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Who the gateways run as when this is root [default: stillpoint-gateway, or nobody]
    #[arg(long, value_name = "USER")]
    pub gateway_user: Option<String>,
}

/// Of `server`.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Where the API listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8470")]
    pub listen: SocketAddr,
    /// A certificate for TLS, with those up to its root (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Without TLS although others can reach it: they can read the tokens
    #[arg(long)]
    pub insecure_http: bool,
    /// End when standard input does
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

impl ServerArgs {
    /// The same as arguments of `server`.
    pub(crate) fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["--listen".into(), self.listen.to_string().into()];
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            arguments.extend(["--tls-cert".into(), certificate.into()]);
            arguments.extend(["--tls-key".into(), key.into()]);
        }
        if self.insecure_http {
            arguments.push("--insecure-http".into());
        }
        arguments
    }
}

/// Of `agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The agent's name
    #[arg(long, default_value = "local")]
    pub name: String,
    /// End when standard input does
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

/// Of `gateway`.
#[derive(Debug, Args)]
pub(crate) struct GatewayRunArgs {
    /// The gateway's name in the configuration
    pub name: String,
    /// Give up root for this user once everything is open
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// End when standard input does
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

/// Of `watchdog`.
#[derive(Debug, Args)]
pub(crate) struct WatchdogArgs {
    /// End once nobody needs it any more
    #[arg(long)]
    pub until_idle: bool,
    /// End once standard input has ended and nothing is left to be undone
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}
