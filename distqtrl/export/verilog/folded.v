// A policy as integers, exported by distqtrl: folded, @LANES@ lanes of @COLUMNS@ multiply-accumulates. See README.md.
// Beats of @COLUMNS@ observations go in (first in the lowest bits, the last beat filled up with anything), one action
// comes out; a transfer happens on every rising edge with valid and ready.
/* verilator lint_off UNUSEDSIGNAL */
module @NAME@ (
    input wire clk,
    input wire rst,
    input wire in_valid,
    output wire in_ready,
    input wire [@COLUMNS@*@XB@-1:0] in_data,
    output reg out_valid,
    input wire out_ready,
    output wire [@ACTIONS@*@YB@-1:0] out_data
);
    localparam LANES = @LANES@, COLUMNS = @COLUMNS@;
    localparam LAYERS = @LAYERS@;  // producer 0 is the input, 1 to LAYERS the layers, LAYERS + 1 a Gaussian head
    localparam LAST = LAYERS + @GAUSSIAN@;
    localparam XB = @XB@, WB = @WB@, AB = @AB@, LB = @LB@;  // bits: observation, weight, level, logit
    localparam NB = @NB@, CB = @CB@;  // bits: what a clock adds to a sum, the sum
    localparam MB = @MB@, FB = @FB@, OB = @OB@, PB = @PB@;  // multiplier, offset, operand, product
    localparam VB = @VB@, YB = @YB@;  // level of any producer, action
    localparam RAGGED = @RAGGED@;  // whether a producer's levels do not end where their bits do
    localparam SB = @SB@, WA = @WA@, PA = @PA@;  // counters, ROM addresses
    localparam DEPTH = @DEPTH@, DB = $clog2(DEPTH), WORDS = @WORDS@, LOGITS = @LOGITS@;

@COUNTS@
@LIMITS@
@TABLES@
@HAS_TABLE@
    // whether a sum is below or above what the bits of its producer's levels hold, and these bits
    function [VB+1:0] cut(input [3:0] i, input signed [PB-1:0] v);
        reg signed [PB-1:0] w;
        reg below, above;
        begin
            case (i)
@CUTS@
            endcase
            cut = {below, above, w[VB-1:0]};
        end
    endfunction

@FACTORS@

    (* rom_style = "block" *) reg [LANES*COLUMNS*WB-1:0] weights [0:@STEPS@-1];
    (* rom_style = "block" *) reg [COLUMNS*MB-1:0] multipliers [0:@PARAMS@-1];
    (* rom_style = "block" *) reg [COLUMNS*FB-1:0] offsets [0:@PARAMS@-1];
    @STYLE@reg signed [VB-1:0] entries [0:@LENGTH@-1];
    initial begin
@ENTRIES@
@WEIGHTS@
@MULTIPLIERS@
@OFFSETS@
    end

    // ---- reading: layer, tile and step count through the weights; a step waits for the word it reads
    reg [3:0] layer;
    reg [SB-1:0] tile, step;
    reg [WA-1:0] at;
    reg reading;
    reg [3:0] producer;  // whose words are being written, and how many are
    reg [SB-1:0] written;
    wire finished = out_valid & out_ready;
    wire real_step = step < steps_of(layer);
    wire there = producer > layer | (producer == layer & step < written);
    wire go = reading & (there | ~real_step);
    wire issue = go & real_step;
    wire last_step = step == period_of(layer) - 1'b1;
    wire last_tile = tile == tiles_of(layer) - 1'b1;
    always @(posedge clk)
        if (rst | finished) begin
            layer <= 0;
            tile <= 0;
            step <= 0;
            at <= 0;
            reading <= 1;
        end else if (go) begin
            if (issue) at <= at + 1'b1;
            step <= last_step ? {SB{1'b0}} : step + 1'b1;
            if (last_step) tile <= last_tile ? {SB{1'b0}} : tile + 1'b1;
            if (last_step & last_tile) begin
                layer <= layer + 1'b1;
                if (layer == LAYERS - 1) reading <= 0;
            end
        end

    localparam SUMMED = @SUMMED@;  // the pipeline stage that holds the sum over columns
    reg [SUMMED:1] valid, first, last;
    always @(posedge clk) begin
        valid <= rst ? {SUMMED{1'b0}} : {valid[SUMMED-1:1], issue};
        first <= {first[SUMMED-1:1], step == 0};
        last <= {last[SUMMED-1:1], step == steps_of(layer) - 1'b1};
    end

    reg [COLUMNS*AB-1:0] levels [0:2*DEPTH-1];
    reg [COLUMNS*AB-1:0] level_1, level_2;
    reg [LANES*COLUMNS*WB-1:0] weight_1, weight_2;
    always @(posedge clk) begin
        level_1 <= levels[{layer[0], step[DB-1:0]}];
        level_2 <= level_1;
        weight_1 <= weights[at];
        weight_2 <= weight_1;
    end

    // ---- lanes: products, their sum (of many, in two stages), accumulation; finished sums move into the drain
    localparam PARTS = @PARTS@, EACH = COLUMNS / PARTS;
    wire [LANES*CB-1:0] sums;
    genvar i, j;
    generate
        for (i = 0; i < LANES; i = i + 1) begin : lane
            wire [COLUMNS*NB-1:0] terms;
            for (j = 0; j < COLUMNS; j = j + 1) begin : column
                wire [AB-1:0] x = level_2[j*AB +: AB];
                wire signed [WB-1:0] w = weight_2[(i*COLUMNS+j)*WB +: WB];
                reg signed [AB+WB-1:0] product;
                always @(posedge clk) product <= times(x, w);
                assign terms[j*NB +: NB] = extended(product);
            end
            wire [PARTS*NB-1:0] parts;
            if (EACH == 1) begin : at_once
                assign parts = terms;
            end else begin : in_parts
                for (j = 0; j < PARTS; j = j + 1) begin : group
                    integer k;
                    reg signed [NB-1:0] added, part;
                    always @* begin
                        added = 0;
                        for (k = 0; k < EACH; k = k + 1) added = added + $signed(terms[(j*EACH+k)*NB +: NB]);
                    end
                    always @(posedge clk) part <= added;
                    assign parts[j*NB +: NB] = part;
                end
            end
            reg signed [NB-1:0] added, sum;
            reg signed [CB-1:0] total;
            integer k;
            always @* begin
                added = 0;
                for (k = 0; k < PARTS; k = k + 1) added = added + $signed(parts[k*NB +: NB]);
            end
            always @(posedge clk) begin
                sum <= added;
                if (valid[SUMMED]) total <= (first[SUMMED] ? {CB{1'b0}} : total) + {{(CB-NB){sum[NB-1]}}, sum};
            end
            assign sums[i*CB +: CB] = total;
        end
    endgenerate

    function signed [AB+WB-1:0] times(input [AB-1:0] x, input signed [WB-1:0] w);
        integer b;
        begin  // additions, so that no multiplier block is spent on a few bits
            times = 0;
            for (b = 0; b < WB - 1; b = b + 1)
                times = times + (w[b] ? {{WB{1'b0}}, x} << b : {(AB+WB){1'b0}});
            times = times - (w[WB-1] ? {{WB{1'b0}}, x} << (WB - 1) : {(AB+WB){1'b0}});
        end
    endfunction

    function signed [NB-1:0] extended(input signed [AB+WB-1:0] v);
        extended = {{(NB-AB-WB){v[AB+WB-1]}}, v};
    endfunction

    reg complete;
    wire last_drain = draining == 1;
    wire last_drain_tile = draining_tile == tiles_of(drained - 1'b1) - 1'b1;
    wire [3:0] next_drained = last_drain & last_drain_tile ? drained + 1'b1 : drained;
    reg [LANES*CB-1:0] drain;
    reg [SB-1:0] draining, draining_tile;
    reg [3:0] drained;  // the producer that drains
    always @(posedge clk) begin
        complete <= valid[SUMMED] & last[SUMMED] & ~rst;
        if (rst | finished) begin
            draining <= 0;
            draining_tile <= 0;
            drained <= 1;
        end else begin
            if (complete) begin
                drain <= sums;
                draining <= drains_of(next_drained);
            end else if (draining != 0) begin
                drain <= drain >> (COLUMNS * CB);
                draining <= draining - 1'b1;
            end
            if (last_drain) draining_tile <= last_drain_tile ? {SB{1'b0}} : draining_tile + 1'b1;
            drained <= next_drained;
        end
    end

    // ---- scaling units: observations, sums and a Gaussian's levels, with their parameters in order
    reg loading;
    reg [SB-1:0] loaded, heading;
    reg [WORDS*COLUMNS*LB-1:0] logits;
    wire take = in_valid & in_ready;
    wire scaling = take | draining != 0 | heading != 0;
    reg [PA-1:0] param;
    wire [PA-1:0] next_param = rst | finished ? {PA{1'b0}} : scaling ? param + 1'b1 : param;
    reg [COLUMNS*MB-1:0] multiplier;
    reg [COLUMNS*FB-1:0] offset;
    assign in_ready = loading;
    always @(posedge clk) begin
        param <= next_param;
        multiplier <= multipliers[next_param];
        offset <= offsets[next_param];
        if (rst | finished) begin
            loading <= 1;
            loaded <= 0;
        end else if (take) begin
            loaded <= loaded + 1'b1;
            loading <= loaded != words_of(0) - 1'b1;
        end
    end

    reg [4:1] scaled;
    reg [3:0] owner_1, owner_2, owner_3, owner_4;
    reg signed [VB-1:0] low, high, bottom, top;  // what levels are clipped to, and what comes of these
    reg tabled;
    wire [COLUMNS*VB-1:0] results;
    generate
        for (j = 0; j < COLUMNS; j = j + 1) begin : unit
            wire signed [XB-1:0] x = in_data[j*XB +: XB];
            wire signed [CB-1:0] c = drain[j*CB +: CB];
            wire [LB-1:0] l = logits[j*LB +: LB];
            reg signed [OB-1:0] operand;
            reg signed [MB-1:0] factor;
            reg signed [FB-1:0] plus_1, plus_2;
            reg signed [PB-1:0] product, sum;
            reg below, above;
            reg signed [VB-1:0] level, entry;
            wire [VB+1:0] whole = cut(owner_3, sum);
            wire under = below | (RAGGED != 0 & ~above & level < low);
            wire over = above | (RAGGED != 0 & level > high);
            always @(posedge clk) begin
                operand <= take ? {{(OB-XB){x[XB-1]}}, x} : heading != 0 ? {{(OB-LB){1'b0}}, l} : {{(OB-CB){c[CB-1]}}, c};
                factor <= multiplier[j*MB +: MB];
                plus_1 <= offset[j*FB +: FB];
                product <= operand * factor;
                plus_2 <= plus_1;
                sum <= product + {{(PB-FB){plus_2[FB-1]}}, plus_2};
                {below, above, level} <= whole;
                entry <= entries[table_of(owner_3) | whole[@TI@-1:0]];
            end
            assign results[j*VB +: VB] = under ? bottom : over ? top : tabled ? entry : level;
        end
    endgenerate
    always @(posedge clk) begin
        scaled <= rst ? 4'b0 : {scaled[3:1], scaling};
        owner_1 <= take ? 4'd0 : heading != 0 ? LAST[3:0] : drained;
        owner_2 <= owner_1;
        owner_3 <= owner_2;
        owner_4 <= owner_3;
        low <= low_of(owner_3);
        high <= high_of(owner_3);
        bottom <= bottom_of(owner_3);
        top <= top_of(owner_3);
        tabled <= has_table(owner_3);
    end

    // ---- writing: words of levels for the next layer, the last layer's to the head
    wire [COLUMNS*AB-1:0] level_word;
    wire [COLUMNS*LB-1:0] logit_word;
    wire [COLUMNS*YB-1:0] action_word;
    generate
        for (j = 0; j < COLUMNS; j = j + 1) begin : word
            assign level_word[j*AB +: AB] = results[j*VB +: AB];
            assign logit_word[j*LB +: LB] = results[j*VB +: LB];
            assign action_word[j*YB +: YB] = results[j*VB +: YB];
        end
    endgenerate
    wire last_word = written == words_of(owner_4) - 1'b1;
    always @(posedge clk) begin
        if (scaled[4] & owner_4 < LAYERS) levels[{owner_4[0], written[DB-1:0]}] <= level_word;
        if (rst | finished) begin
            producer <= 0;
            written <= 0;
        end else if (scaled[4]) begin
            written <= last_word ? {SB{1'b0}} : written + 1'b1;
            if (last_word) producer <= producer + 1'b1;
        end
    end

    // ---- head: the greatest logit, one per clock; or a Gaussian's levels through the scaling units once more
    wire logits_done = scaled[4] & owner_4 == LAYERS & last_word;
    reg [SB-1:0] scanning;
    wire [LB-1:0] logit = logits[LB-1:0];
    wire [(WORDS+1)*COLUMNS*LB-1:0] more_logits = {logit_word, logits};
    always @(posedge clk)
        if (scaled[4] & owner_4 == LAYERS) logits <= more_logits[COLUMNS*LB +: WORDS*COLUMNS*LB];
        else if (heading != 0) logits <= logits >> (COLUMNS * LB);
        else if (scanning != 0) logits <= logits >> LB;
    generate
        if (@GAUSSIAN@) begin : gaussian
            reg [WORDS*COLUMNS*YB-1:0] action;
            wire [(WORDS+1)*COLUMNS*YB-1:0] actions = {action_word, action};
            assign out_data = action[@ACTIONS@*YB-1:0];
            always @(posedge clk) begin
                scanning <= 0;
                heading <= rst | finished ? {SB{1'b0}} : logits_done ? WORDS : heading != 0 ? heading - 1'b1 : heading;
                if (scaled[4] & owner_4 == LAST) action <= actions[COLUMNS*YB +: WORDS*COLUMNS*YB];
                out_valid <= ~rst & ~finished & (out_valid | (scaled[4] & owner_4 == LAST & last_word));
            end
        end else begin : categorical
            reg [LB-1:0] best;
            reg [YB-1:0] index;
            reg [@ACTIONS@*YB-1:0] choice;  // the newest factor's in the highest bits
            wire [(@ACTIONS@+1)*YB-1:0] choices = {index, choice};
            assign out_data = choice;
            always @(posedge clk) begin
                heading <= 0;
                scanning <= rst | finished ? {SB{1'b0}} : logits_done ? LOGITS : scanning != 0 ? scanning - 1'b1 : scanning;
                index <= following(scanning, index);
                if (begins(scanning)) choice <= choices[YB +: @ACTIONS@*YB];
                else if (scanning != 0 & logit > best) choice[(@ACTIONS@-1)*YB +: YB] <= index;
                if (begins(scanning) | (scanning != 0 & logit > best)) best <= logit;
                out_valid <= ~rst & ~finished & (out_valid | scanning == 1);
            end
        end
    endgenerate
endmodule
