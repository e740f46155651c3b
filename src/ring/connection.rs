//! A connection: a state machine between operations and a service. It makes no system call.
//!
//! Two things go on side by side: requests are received (`receiving`) and answered one after another (`exchange`). The body of
//! a request is received only when the service asks for it, and then it is a part of answering ([`super::intake`]).
//! Every event ends with the operations that follow from it in [`Context::submissions`].
//!
//! # Closing
//!
//! There is one way out. [`Connection::terminate`] asks the kernel to give everything back; when the last operation has
//! completed, [`Connection::is_closed`] says so, and the owner calls [`Connection::bury`] and drops it, which closes the
//! socket. Until then no buffer is freed and no descriptor closed, because the operations own them.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use rustix::io::Errno;

use super::body::{Body, BytesBody, Fault};
use super::descriptor::Descriptor;
use super::intake::{self, Intake};
use super::ledger::{Account, Farewell, Ledger, RingLimit, Topic, Way};
use super::op::{ConnectionId, Op, Outcome, Purpose, Submission, Token};
use super::pool::{Exemption, Pool};
use super::service::{Answer, Caller, Reply, ReplyBody, Service};
use super::transfer::{Extent, Progress, Tools, Transfer};
use crate::codec::http::request::{self, BodyLength, Parsed};
use crate::codec::http::response::{CHUNKED_HEAD_END, CONTINUE, Content, Persistence, write_head_start};
use crate::codec::http::{Method, Status, Version};
use crate::limits::{
    ANSWERS_WAITING_LEN_MAX, EXEMPT_BODY_LEN_MIN, HEAD_TIMEOUT_S, IDLE_TIMEOUT_S, INLINE_BODY_LEN_MAX,
    INPUT_LEN_MAX, LAST_REQUEST_TIMEOUT_S, LINGER_LEN_MAX, LINGER_TIMEOUT_S, PROGRESS_TIMEOUT_S,
    RECEIVE_PROGRESS_LEN_MIN, RECEIVE_TIMEOUT_S, SEND_PROGRESS_LEN_MIN,
};
use crate::tally::Tally as _;

/// One peer.
pub struct Connection {
    id: ConnectionId,
    socket: Descriptor,
    /// Operations that have not completed.
    in_flight: usize,
    receiving: Receiving,
    /// Bytes received and not yet understood, starting with a request head, or with the rest of a body.
    input: Vec<u8>,
    /// How much of `input` holds no end of a head. `scanned_len <= input.len()`
    scanned_len: usize,
    /// Answers not yet handed to the kernel.
    output: BytesMut,
    /// Whether earlier answers are with the kernel.
    is_sending: bool,
    exchange: Exchange,
    /// The request that is being answered, or was when the connection ended.
    account: Option<Account>,
    /// Why the connection ends, once that is decided.
    farewell: Option<Farewell>,
    /// Whether the connection ends after the answers that are under way.
    is_last: bool,
    /// Whether the next request makes it so.
    is_next_last: bool,
    /// When what is waited for began, or enough of it had come or gone. Seconds of the worker's clock.
    progress_s: u64,
    /// How much of a body has come or gone since then. Bytes.
    moved_len: u64,
    /// Whether the kernel may take more than it does for others.
    exemption: Option<Exemption>,
}

/// What the receiving side does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    /// Nothing is asked of the kernel.
    Paused,
    /// Data is welcome.
    Armed,
    /// The body of a request is welcome, straight into a buffer.
    Direct,
    /// Too much has come, or the rest is to come another way; the kernel was asked to stop.
    Stopping,
    /// The peer has ended its side.
    Ended,
}

/// What the answering side does.
enum Exchange {
    /// Waits for a request.
    Head,
    /// The service is at work.
    Asked(Asked),
    /// The service gets the body of the request.
    TakingIn(Asked, Intake),
    /// A body is sent.
    Streaming(Transfer),
    /// Our side is shut; what the peer still says is read and dropped, so that it sees the last answer and no reset.
    Lingering { dropped_len: usize },
    /// Waits for the kernel to give everything back.
    Closing(Option<Transfer>),
}

/// What is still needed of a request while the service is at work.
#[derive(Clone, Copy)]
struct Asked {
    method: Method,
    version: Version,
    /// The body, until it was asked for.
    unread: BodyLength,
    expects_continue: bool,
    /// Whether nothing can follow the answer, because the body was not read to its end, or a part of it is still being written.
    is_last: bool,
}

/// What an event may use.
pub struct Context<'a> {
    /// Who answers.
    pub service: &'a mut dyn Service,
    /// Where operations are put.
    pub submissions: &'a mut Vec<Submission>,
    /// Where buffers come from.
    pub pool: &'a mut Pool,
    /// Where it is counted.
    pub ledger: &'a mut Ledger,
    /// The value of `Date`.
    pub date: &'a [u8; 29],
    /// The worker's clock. Seconds.
    pub now_s: u64,
    /// Most that one connection sends of a file in one step. Bytes.
    pub sendfile_len_max: usize,
}

impl Connection {
    /// A connection that was just accepted; begins to receive.
    pub fn new(id: ConnectionId, socket: Descriptor, context: &mut Context<'_>) -> Self {
        context.ledger.figures().opened.add(1);
        let mut connection = Self {
            id,
            socket,
            in_flight: 0,
            receiving: Receiving::Paused,
            input: Vec::new(),
            scanned_len: 0,
            output: BytesMut::new(),
            is_sending: false,
            exchange: Exchange::Head,
            account: None,
            farewell: None,
            is_last: false,
            is_next_last: false,
            progress_s: context.now_s,
            moved_len: 0,
            exemption: None,
        };
        connection.receive(context);
        connection
    }

    /// Its name.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// For how long nothing was wanted here, or only the beginning of a request has come: what may make room for somebody else. `None`
    /// while something is asked, answered or sent. Seconds.
    pub fn idle_s(&self, now_s: u64) -> Option<u64> {
        let is_idle = match self.exchange {
            Exchange::Head => !self.is_sending && self.output.is_empty(),
            Exchange::Lingering { .. } => true,
            _ => false,
        };
        is_idle.then(|| now_s.saturating_sub(self.progress_s))
    }

    /// Ends the connection after the next answer.
    pub fn make_last(&mut self) {
        self.is_next_last = true;
    }

    /// Takes a completion.
    pub fn complete(&mut self, purpose: Purpose, outcome: Outcome<'_>, context: &mut Context<'_>) {
        let goes_on = matches!(outcome, Outcome::Received { armed: true, .. });
        if !goes_on {
            self.in_flight -= 1;
        }
        self.count_sent(&outcome, context);
        count_shortage(&outcome, context.ledger);
        match (outcome, purpose) {
            (Outcome::Received { result, armed }, _) => self.received(result, armed, context),
            (Outcome::ReceivedInto { result, buffer }, _) => self.received_into(result, buffer, context),
            // What comes back while closing is dropped here; the transfer that owned it is buried at the end.
            _ if matches!(self.exchange, Exchange::Closing(_)) => {}
            (Outcome::Sent { result, buffer, range }, _) if self.is_sending => {
                self.answers_sent(result, buffer, range, context);
            }
            (Outcome::Sent { result, buffer, range }, _) => {
                self.moved(result.unwrap_or(0), SEND_PROGRESS_LEN_MIN, context);
                self.transfer(context, |transfer, tools| transfer.sent(result, buffer, range, tools));
            }
            (Outcome::FileSent(result), _) => {
                self.moved(result.unwrap_or(0), SEND_PROGRESS_LEN_MIN, context);
                self.transfer(context, |transfer, tools| transfer.file_sent(result, tools));
            }
            (Outcome::Writable(result), _) => {
                self.transfer(context, |transfer, tools| transfer.writable(result, tools));
            }
            (Outcome::Opened(result), Purpose::File(_)) => {
                self.transfer(context, |transfer, tools| transfer.opened(result, tools));
            }
            (Outcome::Opened(result), _) => {
                let answer = context.service.opened(self.id, result);
                self.answer(answer, context);
            }
            (Outcome::Read { result, buffer }, Purpose::File(index)) => {
                self.transfer(context, |transfer, tools| transfer.read(index, result, buffer, tools));
            }
            (Outcome::Written(result), _) => {
                self.intake(context, |intake, tools| intake.written(result, tools));
                self.proceed(context);
            }
            (Outcome::Read { .. } | Outcome::Accepted { .. } | Outcome::InboxRung, _) => {
                debug_assert!(false, "not an operation of a connection");
            }
        }
    }

    /// Takes the answer of a service that was at work.
    pub fn answer(&mut self, answer: Answer, context: &mut Context<'_>) {
        match self.exchange {
            Exchange::Asked(asked) => self.settle(answer, asked, context),
            // It has heard enough.
            Exchange::TakingIn(asked, _) if matches!(answer, Answer::Reply(_)) => {
                self.abandon(context);
                self.settle(answer, Asked { is_last: true, ..asked }, context);
            }
            _ => return,
        }
        self.proceed(context);
    }

    /// Does what the service says to a request; what follows from that is left to [`Connection::proceed`].
    fn settle(&mut self, answer: Answer, asked: Asked, context: &mut Context<'_>) {
        self.exchange = Exchange::Asked(asked);
        match answer {
            Answer::Pending => {}
            Answer::Open { directory, path } => {
                self.submit(Purpose::ServiceOpen, Op::Open { directory, path }, context);
            }
            Answer::Receive { file } => {
                if asked.expects_continue {
                    self.output_mut(context).put_slice(CONTINUE);
                    if let Some(account) = &self.account {
                        context.ledger.said(account, CONTINUE.len());
                    }
                }
                self.begin_waiting(context);
                let intake = Intake::new(asked.unread, file);
                let asked = Asked { unread: BodyLength::None, expects_continue: false, ..asked };
                self.exchange = Exchange::TakingIn(asked, intake);
                self.intake(context, Intake::step);
            }
            Answer::Reply(reply) => {
                self.exchange = Exchange::Head;
                // The peer's time begins now, however long the service took.
                self.begin_waiting(context);
                self.reply(reply, asked, context);
            }
        }
    }

    /// Goes on after a pause: the body of the answer knows more.
    pub fn resume(&mut self, context: &mut Context<'_>) {
        if !self.is_sending {
            self.transfer(context, Transfer::step);
        }
    }

    /// Goes on after a pause: there is a buffer.
    pub fn feed(&mut self, context: &mut Context<'_>) {
        self.resume(context);
        if matches!(self.exchange, Exchange::TakingIn(..)) {
            self.proceed(context);
        }
    }

    /// The service has looked at a piece of the request's body.
    pub fn looked_at(&mut self, context: &mut Context<'_>) {
        self.intake(context, Intake::looked_at);
        self.proceed(context);
    }

    /// Parts with a buffer that is kept for a peer that does nothing.
    pub fn surrender(&mut self, context: &mut Context<'_>) {
        match &mut self.exchange {
            Exchange::Streaming(transfer) => {
                if let Some(buffer) = transfer.surrender() {
                    context.pool.packs.give_back(buffer);
                }
            }
            Exchange::TakingIn(..) => {
                self.intake(context, Intake::surrender);
                self.proceed(context);
            }
            _ => {}
        }
    }

    /// Looks at the deadlines; called about once a second.
    pub fn tick(&mut self, context: &mut Context<'_>) {
        let waited_s = context.now_s.saturating_sub(self.progress_s);
        match &mut self.exchange {
            Exchange::Head if self.is_sending => {
                if waited_s > PROGRESS_TIMEOUT_S {
                    self.terminate(Farewell::Slow, context);
                }
            }
            // An empty line before a request (RFC 9112 section 2.2) is no request yet.
            Exchange::Head if matches!(&*self.input, b"" | b"\r\n") => {
                let timeout_s = if self.is_next_last { LAST_REQUEST_TIMEOUT_S } else { IDLE_TIMEOUT_S };
                if waited_s > timeout_s {
                    self.linger(Farewell::Idle, context);
                }
            }
            Exchange::Head => {
                let timeout_s = if self.is_next_last { LINGER_TIMEOUT_S } else { HEAD_TIMEOUT_S };
                if waited_s > timeout_s {
                    let (farewell, status) = (Farewell::Timeout, Status::RequestTimeout);
                    self.refuse(farewell, status, "the request did not arrive in time\n", context);
                    self.proceed(context);
                }
            }
            Exchange::TakingIn(_, intake) => {
                let is_asked = matches!(self.receiving, Receiving::Armed | Receiving::Direct);
                if intake.has_ended() || !self.input.is_empty() || !is_asked {
                    // It is our turn: the peer's time begins when something is wanted of it.
                    self.begin_waiting(context);
                } else if waited_s > RECEIVE_TIMEOUT_S {
                    self.lose(context);
                    let (farewell, status) = (Farewell::Timeout, Status::RequestTimeout);
                    self.refuse(farewell, status, "the body did not arrive in time\n", context);
                    self.proceed(context);
                }
            }
            Exchange::Streaming(transfer) => {
                if !transfer.waits_for_peer() && !self.is_sending {
                    self.begin_waiting(context);
                } else if waited_s > PROGRESS_TIMEOUT_S || transfer.yields(waited_s) {
                    self.terminate(Farewell::Slow, context);
                }
            }
            Exchange::Lingering { .. } => {
                if waited_s > LINGER_TIMEOUT_S {
                    self.terminate(Farewell::LastAnswer, context);
                }
            }
            Exchange::Asked(_) | Exchange::Closing(_) => {}
        }
    }

    /// Ends the connection after the answers that are under way.
    ///
    /// A peer that was not told so may have sent its next request already, and not every client asks again for what was lost with a
    /// connection. One that has used it a moment ago therefore gets another, and an answer that says it is the last (RFC 9112 section
    /// 9.6).
    pub fn drain(&mut self, context: &mut Context<'_>) {
        let is_unused = self.input.is_empty()
            && self.idle_s(context.now_s).is_some_and(|idle_s| idle_s > LAST_REQUEST_TIMEOUT_S);
        match self.exchange {
            Exchange::Asked(_) | Exchange::TakingIn(..) => self.is_last = true,
            Exchange::Head if is_unused => {
                self.is_last = true;
                self.linger(Farewell::Idle, context);
            }
            _ => self.make_last(),
        }
    }

    /// Asks the kernel to give everything back. See the module documentation. Why the connection ends is what was said of that first.
    pub fn terminate(&mut self, farewell: Farewell, context: &mut Context<'_>) {
        self.farewell.get_or_insert(farewell);
        let exchange = std::mem::replace(&mut self.exchange, Exchange::Closing(None));
        let transfer = match exchange {
            Exchange::Streaming(transfer) => Some(transfer),
            Exchange::Closing(transfer) => {
                self.exchange = Exchange::Closing(transfer);
                return;
            }
            Exchange::Asked(_) => {
                context.service.gone(self.id);
                None
            }
            Exchange::TakingIn(_, intake) => {
                intake.abandon(self.id, context.pool);
                context.service.gone(self.id);
                None
            }
            Exchange::Head | Exchange::Lingering { .. } => None,
        };
        let is_at_rest = self.in_flight == 0;
        self.exchange = Exchange::Closing(transfer);
        if farewell.is_reset() {
            self.command(Op::ResetOnClose { socket: self.socket.clone() }, context);
        }
        if !is_at_rest {
            // Files are read and written to their end, which comes by itself; what waits for the peer would not.
            for purpose in [Purpose::Receive, Purpose::Send] {
                self.command(Op::Cancel(Token::Connection(self.id, purpose)), context);
            }
        }
    }

    /// Whether nothing is in flight any more after [`Connection::terminate`].
    pub fn is_closed(&self) -> bool {
        self.in_flight == 0 && matches!(self.exchange, Exchange::Closing(_))
    }

    /// The last call before the connection is dropped: settles what it held. Not before this is it known how much of its last answer
    /// has gone.
    pub fn bury(mut self, pool: &mut Pool, ledger: &Ledger) {
        if let Some(farewell) = self.farewell {
            ledger.figures().closed[farewell as usize].add(1);
            if let Some(account) = self.account {
                ledger.cut(account, farewell);
            }
        }
        if let Exchange::Closing(Some(transfer)) = &self.exchange {
            pool.packs.forget(self.id);
            if transfer.holds_pack() {
                pool.packs.lost();
            }
        }
        if self.output.capacity() > 0 {
            pool.give_back_answer(std::mem::take(&mut self.output));
        }
    }

    fn received(&mut self, result: Result<&[u8], Errno>, armed: bool, context: &mut Context<'_>) {
        self.receiving = match (armed, self.receiving) {
            (true, Receiving::Stopping) => Receiving::Stopping,
            (true, _) => Receiving::Armed,
            (false, _) => Receiving::Paused,
        };
        if !self.heard(result.map(<[u8]>::len), context) {
            return;
        }
        match (result.unwrap_or_default(), &self.exchange) {
            ([], _) | (_, Exchange::Lingering { .. }) => {}
            (data, Exchange::Head | Exchange::TakingIn(..)) if self.input.is_empty() => {
                if matches!(self.exchange, Exchange::Head) {
                    self.begin_waiting(context);
                }
                let used_len = self.understand(data, context);
                self.input.extend_from_slice(&data[used_len..]);
            }
            (data, _) => self.input.extend_from_slice(data),
        }
        self.proceed(context);
    }

    fn received_into(&mut self, result: Result<usize, Errno>, buffer: BytesMut, context: &mut Context<'_>) {
        self.receiving = Receiving::Paused;
        let len = result.unwrap_or(0);
        if let Exchange::TakingIn(..) = self.exchange {
            self.moved(len, RECEIVE_PROGRESS_LEN_MIN, context);
            self.intake(context, |intake, tools| intake.take_back(buffer, len, tools));
        } else {
            context.pool.intakes.give_back(buffer);
        }
        if !self.heard(result, context) {
            return;
        }
        self.proceed(context);
    }

    /// Notes how many bytes have come, or why none; false when that was the end of the connection.
    fn heard(&mut self, result: Result<usize, Errno>, context: &mut Context<'_>) -> bool {
        let farewell = match (result, &mut self.exchange) {
            (_, Exchange::Closing(_)) => return false,
            // No buffer was free, or the kernel has stopped as it was asked to: receive again when there is room.
            (Err(Errno::NOBUFS | Errno::CANCELED | Errno::INTR | Errno::AGAIN), _) => return true,
            (Err(_), _) => Farewell::Reset,
            (Ok(0), exchange) => {
                self.receiving = Receiving::Ended;
                if !matches!(exchange, Exchange::Lingering { .. }) {
                    return true;
                }
                Farewell::Peer
            }
            (Ok(len), Exchange::Lingering { dropped_len }) => {
                *dropped_len += len;
                if *dropped_len <= LINGER_LEN_MAX {
                    return true;
                }
                Farewell::LastAnswer
            }
            (Ok(_), _) => return true,
        };
        self.terminate(farewell, context);
        false
    }

    /// Does whatever can be done next: answer what was received, send what was answered, receive, or end.
    fn proceed(&mut self, context: &mut Context<'_>) {
        if matches!(self.exchange, Exchange::Head | Exchange::TakingIn(..)) && !self.input.is_empty() {
            let input = std::mem::take(&mut self.input);
            let used_len = self.understand(&input, context);
            self.input = input;
            self.input.drain(..used_len);
            if self.input.is_empty() {
                self.input = Vec::new();
            }
        }
        // Half a request is none.
        if let Exchange::TakingIn(_, intake) = &self.exchange
            && self.receiving == Receiving::Ended
            && self.input.is_empty()
            && !intake.has_ended()
        {
            self.farewell.get_or_insert(Farewell::Peer);
            self.lose(context);
        }
        match &mut self.exchange {
            Exchange::Streaming(_) => {
                self.send_answers(context);
                if !self.is_sending {
                    self.transfer(context, Transfer::step);
                }
            }
            Exchange::Head | Exchange::Asked(_) | Exchange::TakingIn(..) => self.send_answers(context),
            Exchange::Lingering { .. } | Exchange::Closing(_) => {}
        }
        // A peer that has ended its side still gets the answers to what it has asked.
        let is_over = self.is_last || self.receiving == Receiving::Ended;
        if is_over && matches!(self.exchange, Exchange::Head) && !self.is_sending {
            self.linger(if self.is_last { Farewell::LastAnswer } else { Farewell::Peer }, context);
        }
        self.receive(context);
    }

    /// Understands what is at the start of `data`: requests, and the body that is being taken in. Returns how many bytes that
    /// were.
    ///
    /// Stops at the first request that cannot be answered from memory, or when enough answers wait to be sent.
    fn understand(&mut self, data: &[u8], context: &mut Context<'_>) -> usize {
        let mut used_len = 0;
        while used_len < data.len() {
            let rest = &data[used_len..];
            let len = match self.exchange {
                // Bytes behind the answer that said so are no request.
                Exchange::Head if self.is_last => rest.len(),
                Exchange::Head if self.output.len() < ANSWERS_WAITING_LEN_MAX => {
                    match self.understand_head(rest, context) {
                        0 => break,
                        len => len,
                    }
                }
                Exchange::TakingIn(..) => {
                    let mut taken_len = 0;
                    self.intake(context, |intake, tools| intake.take(rest, &mut taken_len, tools));
                    if matches!(self.exchange, Exchange::TakingIn(..)) {
                        self.moved(taken_len, RECEIVE_PROGRESS_LEN_MIN, context);
                        if taken_len == 0 {
                            break;
                        }
                    }
                    taken_len
                }
                _ => break,
            };
            used_len += len;
        }
        used_len
    }

    /// Asks the service for an answer to the request at the start of `data`; returns how long its head is, or 0 when that is not
    /// known yet.
    fn understand_head(&mut self, data: &[u8], context: &mut Context<'_>) -> usize {
        match request::parse(data, self.scanned_len) {
            Ok(Parsed::Partial { scanned_len }) => {
                self.scanned_len = scanned_len;
                0
            }
            Ok(Parsed::Complete { request, head_len }) => {
                self.scanned_len = 0;
                // What follows is another request, and has its own time.
                self.begin_waiting(context);
                if self.is_next_last || !request.keep_alive() {
                    self.is_last = true;
                }
                let asked = Asked {
                    method: request.method,
                    version: request.version,
                    unread: request.body_length(),
                    expects_continue: request.expects_continue(),
                    is_last: false,
                };
                let called = context.service.call(&Caller { id: self.id, socket: &self.socket }, &request);
                self.account = Some(context.ledger.begin(called.topic, called.witness));
                self.settle(called.answer, asked, context);
                head_len
            }
            Err(bad) => {
                self.scanned_len = 0;
                self.refuse(Farewell::Malformed, bad.status(), bad.to_string() + "\n", context);
                data.len()
            }
        }
    }

    /// Answers something that is no request, or a request whose body is none; what follows it cannot be understood either.
    fn refuse(
        &mut self,
        farewell: Farewell,
        status: Status,
        text: impl Into<Bytes>,
        context: &mut Context<'_>,
    ) {
        self.is_last = true;
        self.farewell.get_or_insert(farewell);
        self.input = Vec::new();
        let asked = Asked {
            method: Method::Get,
            version: Version::Http11,
            unread: BodyLength::None,
            expects_continue: false,
            is_last: true,
        };
        self.reply(Reply::text(status, text), asked, context);
    }

    /// Answers the request, and counts that. What is no request is one about that.
    fn reply(&mut self, reply: Reply, asked: Asked, context: &mut Context<'_>) {
        let mut account = self.account.take().unwrap_or_else(|| {
            let witness = context.service.misunderstood(&Caller { id: self.id, socket: &self.socket });
            context.ledger.begin(Topic::MALFORMED, witness)
        });
        context.ledger.answered(&mut account, reply.status);
        let start = self.output.len();
        self.put_reply(reply, asked, context);
        if let Exchange::Streaming(_) = self.exchange {
            self.account = Some(account);
            return;
        }
        context.ledger.first_byte(&mut account);
        context.ledger.went(&mut account, self.output.len() - start);
        context.ledger.answered_whole(account);
    }

    /// Puts the head, and a small body, behind the answers that wait; begins to stream a large one.
    fn put_reply(&mut self, reply: Reply, asked: Asked, context: &mut Context<'_>) {
        // A body that was not read must not be taken for the next request.
        if asked.is_last || !matches!(asked.unread, BodyLength::None | BodyLength::Length(0)) {
            self.is_last = true;
        }
        let content = Content::of(asked.method, reply.status);
        let has_body = content == Content::Body;
        let is_chunked = asked.version == Version::Http11 && content != Content::Nothing;
        // Nothing but the connection's end tells a client of HTTP/1.0 where such a body ends.
        if has_body && !is_chunked && matches!(reply.body, ReplyBody::Unbounded(_)) {
            self.is_last = true;
        }
        let persistence = Persistence::new(asked.version, !self.is_last);
        let head_start = self.output.len();
        write_head_start(self.output_mut(context), reply.status, context.date, persistence);
        self.output.put_slice(&reply.fields);
        let (body, extent): (Box<dyn Body>, _) = match reply.body {
            ReplyBody::Rendered { text, fields_len } => {
                let text = (*text).as_ref();
                let text = if has_body { text } else { &text[..fields_len] };
                if text.len() <= INLINE_BODY_LEN_MAX {
                    return self.output.put_slice(text);
                }
                (Box::new(BytesBody(Bytes::copy_from_slice(text))), Extent::Range(0..text.len() as u64))
            }
            ReplyBody::Empty => return,
            ReplyBody::Unbounded(body) => {
                self.output.put_slice(if is_chunked { CHUNKED_HEAD_END } else { b"\r\n" });
                match (has_body, is_chunked) {
                    (false, _) => return,
                    (true, true) => (body, Extent::Chunks),
                    (true, false) => (body, Extent::UntilClose),
                }
            }
            _ if !has_body => return,
            ReplyBody::Bytes(bytes) if bytes.len() <= INLINE_BODY_LEN_MAX => {
                return self.output.put_slice(&bytes);
            }
            ReplyBody::Bytes(bytes) => {
                let end = bytes.len() as u64;
                (Box::new(BytesBody(bytes)), Extent::Range(0..end))
            }
            ReplyBody::Stream { range, .. } if range.is_empty() => return,
            ReplyBody::Stream { body, range } => (body, Extent::Range(range)),
        };
        // The answers before it go out first: a body that breaks at once must not take them along.
        let lead = Bytes::copy_from_slice(&self.output[head_start..]);
        self.output.truncate(head_start);
        if self.output.is_empty() {
            context.pool.give_back_answer(std::mem::take(&mut self.output));
        }
        if matches!(&extent, Extent::Range(range) if range.end - range.start >= EXEMPT_BODY_LEN_MIN) {
            self.exempt(context);
        }
        self.exchange = Exchange::Streaming(Transfer::new(lead, body, extent));
    }

    /// Lets the kernel take what it likes from here on, if there are few that it may do so for.
    fn exempt(&mut self, context: &mut Context<'_>) {
        if self.exemption.is_none() {
            self.exemption = context.pool.exemptions.take();
            if self.exemption.is_some() {
                self.command(Op::Exempt { socket: self.socket.clone() }, context);
            } else {
                context.ledger.hit(RingLimit::Exemptions);
            }
        }
    }

    /// Where answers are put.
    fn output_mut(&mut self, context: &mut Context<'_>) -> &mut BytesMut {
        if self.output.capacity() == 0 {
            self.output = context.pool.take_answer();
        }
        &mut self.output
    }

    /// Hands the answers that wait to the kernel, all in one operation.
    fn send_answers(&mut self, context: &mut Context<'_>) {
        if self.is_sending || self.output.is_empty() {
            return;
        }
        let buffer = std::mem::take(&mut self.output);
        let range = 0..buffer.len();
        self.is_sending = true;
        let op = Op::Send { socket: self.socket.clone(), buffer, range, more: false, wait: true };
        self.submit(Purpose::Send, op, context);
    }

    /// Counts what the kernel has taken, also of an answer that is given up.
    fn count_sent(&mut self, outcome: &Outcome<'_>, context: &mut Context<'_>) {
        let (way, len) = match (outcome, &self.exchange) {
            // These were counted when they were put there.
            (Outcome::Sent { result: Ok(len), .. }, _) if self.is_sending => {
                return context.ledger.sent(Way::Memory, *len);
            }
            (
                Outcome::Sent { result: Ok(len), .. },
                Exchange::Streaming(transfer) | Exchange::Closing(Some(transfer)),
            ) => (transfer.way(), *len),
            (Outcome::FileSent(Ok(len)), _) => (Way::SendFile, *len),
            _ => return,
        };
        context.ledger.sent(way, len);
        if let Some(account) = &mut self.account {
            context.ledger.went(account, len);
        }
    }

    fn answers_sent(
        &mut self,
        result: Result<usize, Errno>,
        buffer: BytesMut,
        range: Range<usize>,
        context: &mut Context<'_>,
    ) {
        let sent = match result {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => return self.terminate(Farewell::Reset, context),
        };
        if sent < range.len() {
            self.moved(sent, SEND_PROGRESS_LEN_MIN, context);
            let range = range.start + sent..range.end;
            let op = Op::Send { socket: self.socket.clone(), buffer, range, more: false, wait: true };
            return self.submit(Purpose::Send, op, context);
        }
        self.is_sending = false;
        self.begin_waiting(context);
        context.pool.give_back_answer(buffer);
        self.proceed(context);
    }

    /// Lets the transfer take an event, and goes on with what it came to.
    fn transfer(
        &mut self,
        context: &mut Context<'_>,
        event: impl FnOnce(&mut Transfer, &mut Tools<'_>) -> Progress,
    ) {
        let Exchange::Streaming(transfer) = &mut self.exchange else { return };
        let before = context.submissions.len();
        let mut tools = Tools {
            id: self.id,
            socket: &self.socket,
            submissions: context.submissions,
            pool: context.pool,
            ledger: context.ledger,
            sendfile_len_max: context.sendfile_len_max,
        };
        let progress = event(transfer, &mut tools);
        let submitted = &context.submissions[before..];
        self.in_flight += submitted.len();
        // The head goes with the first buffer.
        if let (Some(account), [Submission { op: Op::Send { .. }, .. }]) = (&mut self.account, submitted) {
            context.ledger.first_byte(account);
        }
        match progress {
            Progress::Underway => {}
            Progress::Broken(farewell) => self.terminate(farewell, context),
            Progress::Done => {
                if let Some(account) = self.account.take() {
                    context.ledger.streamed_whole(account);
                }
                self.exchange = Exchange::Head;
                self.begin_waiting(context);
                self.proceed(context);
            }
        }
    }

    /// Lets the intake take an event, and asks the service for an answer if that was the last. What follows is left to
    /// [`Connection::proceed`].
    fn intake(
        &mut self,
        context: &mut Context<'_>,
        event: impl FnOnce(&mut Intake, &mut intake::Tools<'_>) -> intake::Progress,
    ) {
        let Exchange::TakingIn(asked, intake) = &mut self.exchange else { return };
        let asked = *asked;
        let before = context.submissions.len();
        let mut tools = intake::Tools {
            id: self.id,
            service: context.service,
            submissions: context.submissions,
            pool: context.pool,
            ledger: context.ledger,
        };
        let progress = event(intake, &mut tools);
        self.in_flight += context.submissions.len() - before;
        match progress {
            intake::Progress::Underway => {}
            intake::Progress::Whole => {
                let answer = context.service.received(self.id);
                self.settle(answer, asked, context);
            }
            intake::Progress::Malformed(bad) => {
                self.lose(context);
                self.refuse(Farewell::Malformed, bad.status(), bad.to_string() + "\n", context);
            }
            intake::Progress::Unwritten(errno) => {
                self.abandon(context);
                let answer = context.service.unwritten(self.id, errno);
                self.settle(answer, Asked { is_last: true, ..asked }, context);
            }
        }
    }

    /// Gives up a body whose end does not come, and the request with it.
    fn lose(&mut self, context: &mut Context<'_>) {
        self.abandon(context);
        self.is_last = true;
        context.service.gone(self.id);
    }

    /// Lets go of the intake.
    fn abandon(&mut self, context: &mut Context<'_>) {
        if let Exchange::TakingIn(_, intake) = std::mem::replace(&mut self.exchange, Exchange::Head) {
            intake.abandon(self.id, context.pool);
        }
    }

    /// Shuts our side and waits for the peer to shut its own.
    fn linger(&mut self, farewell: Farewell, context: &mut Context<'_>) {
        if self.receiving == Receiving::Ended {
            return self.terminate(farewell, context);
        }
        self.farewell.get_or_insert(farewell);
        self.input = Vec::new();
        self.begin_waiting(context);
        self.exchange = Exchange::Lingering { dropped_len: 0 };
        self.command(Op::ShutdownWrite { socket: self.socket.clone() }, context);
    }

    /// Receives while there is room for more, stops while there is not; changes between requests and the body of one.
    fn receive(&mut self, context: &mut Context<'_>) {
        if matches!(self.exchange, Exchange::Closing(_)) {
            return;
        }
        let has_room = self.input.len() < INPUT_LEN_MAX;
        let is_direct = matches!(&self.exchange, Exchange::TakingIn(_, intake) if intake.is_direct());
        match self.receiving {
            // What came the other way goes before it.
            Receiving::Paused if is_direct && self.input.is_empty() => {
                let mut lent = None;
                self.intake(context, |intake, tools| {
                    lent = intake.lend(tools);
                    intake::Progress::Underway
                });
                if let Some((buffer, range)) = lent {
                    self.receiving = Receiving::Direct;
                    let op = Op::ReceiveInto { socket: self.socket.clone(), buffer, range };
                    self.submit(Purpose::Receive, op, context);
                }
            }
            Receiving::Paused if has_room && !is_direct => {
                self.receiving = Receiving::Armed;
                self.submit(Purpose::Receive, Op::Receive { socket: self.socket.clone() }, context);
            }
            Receiving::Armed if !has_room || is_direct => self.stop_receiving(context),
            Receiving::Direct if !is_direct => self.stop_receiving(context),
            _ => {}
        }
    }

    fn stop_receiving(&mut self, context: &mut Context<'_>) {
        self.receiving = Receiving::Stopping;
        self.command(Op::Cancel(Token::Connection(self.id, Purpose::Receive)), context);
    }

    /// The peer's time begins.
    fn begin_waiting(&mut self, context: &Context<'_>) {
        self.progress_s = context.now_s;
        self.moved_len = 0;
    }

    /// Notes that so many bytes of a body have come or gone. The peer's time begins again when they are `enough` together: one byte now and
    /// then is no progress.
    fn moved(&mut self, len: usize, enough: u64, context: &Context<'_>) {
        self.moved_len += len as u64;
        if self.moved_len >= enough {
            self.begin_waiting(context);
        }
    }

    /// Asks for something that completes.
    fn submit(&mut self, purpose: Purpose, op: Op, context: &mut Context<'_>) {
        self.in_flight += 1;
        context.submissions.push(Submission { token: Token::Connection(self.id, purpose), op });
    }

    /// Asks for something that does not complete.
    fn command(&mut self, op: Op, context: &mut Context<'_>) {
        let token = Token::Connection(self.id, Purpose::Send);
        context.submissions.push(Submission { token, op });
    }
}

/// Counts a file that could not be opened for want of descriptors or memory, whoever wanted it.
fn count_shortage(outcome: &Outcome<'_>, ledger: &Ledger) {
    let (Outcome::Opened(Err(errno)) | Outcome::Read { result: Err(Fault::File(errno)), .. }) = outcome
    else {
        return;
    };
    if matches!(*errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM) {
        ledger.hit(RingLimit::Descriptors);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::codec::http::request::Request;
    use crate::ring::op::OpenedFile;
    use crate::ring::service::Called;

    const ID: ConnectionId = ConnectionId { slot: 0, generation: 1 };
    const REQUESTS: &str = "GET /first HTTP/1.1\r\nHost: here\r\n\r\nHEAD /second HTTP/1.1\r\nHost: here\r\n\r\n\
        GET /kept HTTP/1.1\r\nHost: here\r\n\r\n";

    /// Answers with the target.
    struct Echo;

    impl Service for Echo {
        fn call(&mut self, _: &Caller<'_>, request: &Request<'_>) -> Called {
            let reply = match request.target {
                b"/kept" => {
                    let body =
                        ReplyBody::Rendered { text: Arc::new("X-Kept: yes\r\n\r\nkept"), fields_len: 15 };
                    Reply { status: Status::Ok, fields: Bytes::new(), body }
                }
                target => Reply::text(Status::Ok, Bytes::copy_from_slice(target)),
            };
            Answer::Reply(reply).into()
        }

        fn opened(&mut self, _: ConnectionId, _: Result<OpenedFile, Errno>) -> Answer {
            unreachable!("nothing is opened")
        }

        fn body(&mut self, _: ConnectionId, _: Bytes) {
            unreachable!("no body is asked for")
        }

        fn received(&mut self, _: ConnectionId) -> Answer {
            unreachable!("no body is asked for")
        }

        fn unwritten(&mut self, _: ConnectionId, _: Errno) -> Answer {
            unreachable!("no body is asked for")
        }

        fn gone(&mut self, _: ConnectionId) {}
    }

    struct Bench {
        pool: Pool,
        ledger: Ledger,
        submissions: Vec<Submission>,
    }

    impl Bench {
        fn with<T>(&mut self, event: impl FnOnce(&mut Context<'_>) -> T) -> T {
            event(&mut Context {
                service: &mut Echo,
                submissions: &mut self.submissions,
                pool: &mut self.pool,
                ledger: &mut self.ledger,
                date: b"Sun, 06 Nov 1994 08:49:37 GMT",
                now_s: 0,
                sendfile_len_max: 0,
            })
        }

        fn receive(&mut self, connection: &mut Connection, data: &[u8]) {
            let outcome = Outcome::Received { result: Ok(data), armed: true };
            self.with(|context| connection.complete(Purpose::Receive, outcome, context));
        }

        /// What the only operation sends.
        fn sent(&mut self) -> (BytesMut, Range<usize>) {
            let submission = self.submissions.pop().unwrap();
            assert!(self.submissions.is_empty(), "one operation");
            let Op::Send { buffer, range, .. } = submission.op else { panic!("{submission:?}") };
            (buffer, range)
        }
    }

    /// The bodies of answers, or nothing for HEAD.
    fn bodies(answers: &[u8]) -> Vec<String> {
        let answers = str::from_utf8(answers).unwrap().split("HTTP/1.1 200 OK\r\n").skip(1);
        answers.map(|answer| answer.split_once("\r\n\r\n").unwrap().1.to_owned()).collect()
    }

    #[test]
    fn the_answers_to_one_read_go_out_in_one_send() {
        let ledger = Ledger::new(Arc::default(), Instant::now());
        let mut bench = Bench { pool: Pool::default(), ledger, submissions: Vec::new() };
        let socket = Descriptor::simulated(3, &Rc::new(Cell::new(0)));
        let mut connection = bench.with(|context| Connection::new(ID, socket, context));
        assert!(matches!(bench.submissions.pop().unwrap().op, Op::Receive { .. }));

        bench.receive(&mut connection, REQUESTS.as_bytes());
        let (buffer, range) = bench.sent();
        assert_eq!(bodies(&buffer[range.clone()]), ["/first", "", "kept"]);

        // What is read while they are with the kernel waits, and goes out together as well.
        bench.receive(&mut connection, REQUESTS.as_bytes());
        bench.receive(&mut connection, REQUESTS.as_bytes());
        assert!(bench.submissions.is_empty());
        let outcome = Outcome::Sent { result: Ok(range.len()), buffer, range };
        bench.with(|context| connection.complete(Purpose::Send, outcome, context));
        let (buffer, range) = bench.sent();
        assert_eq!(bodies(&buffer[range]), ["/first", "", "kept", "/first", "", "kept"]);
    }
}
